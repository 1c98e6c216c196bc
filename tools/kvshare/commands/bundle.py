"""`kvshare bundle`: one archive to find a fault with."""

from pathlib import Path

import click

from kvshare.commands.options import complain
from kvshare.config.settings import find_root, load_settings


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--tail",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="At most the last N log lines of each node.",
)
@click.option(
    "--evidence",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Put in this report or evidence of verify or doctor as well; may be repeated.",
)
def bundle(file: Path | None, tail: int, evidence: tuple[Path, ...]) -> None:
    """Write one archive to find a fault with: logs, containers, configuration, metrics, versions.

    FILE ends in .tar.gz; without it the name holds the time. Tokens, keys and passwords are removed. What
    cannot be had, e.g. because an engine does not answer, is named in its README.md and on stderr.
    """
    from kvshare.operate import bundle as bundler

    path = file or bundler.default_path()
    settings = load_settings(find_root())
    contents = bundler.bundle(settings, path, bundler.Options(tail, evidence))
    complain(f"not in it: {name}: {reason}" for name, reason in contents.missing.items())
    click.echo(path)
