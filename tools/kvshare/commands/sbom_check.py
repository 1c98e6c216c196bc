"""`kvshare sbom-check`: the images' bills of materials against known advisories."""

from datetime import UTC, datetime
from pathlib import Path

import click

from kvshare.config.settings import find_root, load_settings
from kvshare.errors import FAILED, CouldNotCheckError

FILE = click.Path(exists=True, path_type=Path)


@click.command("sbom-check")
@click.option(
    "--advisories",
    type=FILE,
    help="OSV records, offline: OSV's dump of PyPI as a zip, a folder of them, or a file of one or a list.",
)
@click.option(
    "--sbom", "sboms", type=FILE, multiple=True, help="A bill saved earlier, instead of the images' own."
)
@click.option(
    "--ignore", multiple=True, metavar="ID", help="An advisory that was looked at; may be repeated."
)
def sbom_check(advisories: Path | None, sboms: tuple[Path, ...], ignore: tuple[str, ...]) -> None:
    """Compare the Python packages in the images with known advisories, and say how old those are.

    Without --advisories it asks the package index of PIP_INDEX_URL, by its JSON API. Exit code 0: no
    advisory, 1: some, 3: there is no source of advisories, or no image.
    """
    from kvshare.operate import advisories as known
    from kvshare.site import images

    settings = load_settings(find_root())
    if sboms:
        bills = [known.bill_of(str(path), path.read_bytes()) for path in sboms]
    else:
        context = settings.prefill_context
        names = images.names(settings, images.built(settings))
        bills = [known.bill_of(name, images.bill_of_materials(context, name)) for name in names]
    packages = sorted({package for bill in bills for package in bill.packages})
    if advisories is not None:
        findings = known.from_file(advisories, packages)
    elif index := settings.get("PIP_INDEX_URL"):
        findings = known.from_index(index, packages)
    else:
        raise CouldNotCheckError(
            "no source of advisories: set PIP_INDEX_URL to a package index that serves them, or give a file, "
            "ARGS='--advisories FILE', OSV's dump of PyPI."
        )
    findings = known.without(findings, ignore)
    for line in known.lines(bills, findings, datetime.now(UTC)):
        click.echo(line)
    if findings.advisories:
        raise click.exceptions.Exit(FAILED)
