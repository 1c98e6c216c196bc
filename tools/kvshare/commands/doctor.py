"""The command: `kvshare doctor`."""

import sys
from pathlib import Path

import click

from kvshare.commands import options
from kvshare.config.settings import find_root, load_settings


@click.command()
@options.report_format("doctor.schema.json")
@options.wait(0.0, "How long to go on asking an engine that does not answer.")
@options.ONLY
@options.SKIP
@click.option(
    "--prefill-speed",
    type=click.FloatRange(min=0, min_open=True),
    metavar="TOKENS/S",
    help="What prefill computes a second, where you know it; else measured if it runs, assumed if not.",
)
@click.option(
    "--write", is_flag=True, help="Put the LOOKUP_TIMEOUT_MS that the measured link asks for into .env."
)
@options.OUTPUT_FILE
def doctor(
    output: str,
    wait_s: float,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    prefill_speed: float | None,
    write: bool,
    output_file: Path | None,
) -> None:
    """Say whether the machines can run the stack, before anything of it is up.

    Looks at engines, images, machines, GPUs, the network between the nodes and the configuration, from
    short-lived containers of the engine image, and measures the link as KV would travel on it. Starts
    nothing of the stack, changes nothing but .env, and that with --write only. Exit code 0 only if nothing
    failed; `docs/checks.md` explains every check.
    """
    from kvshare.config import dotenv
    from kvshare.doctor import checks, gather, judgement, report
    from kvshare.doctor.meaning import derived_line
    from kvshare.progress import step

    selected = checks.select(only, skip)
    settings = load_settings(find_root())
    network = write or checks.needs_network(selected)
    wanted = gather.Options(wait_s, prefill_speed, network)
    with step("Examine") as current:
        evidence = gather.examine(settings, wanted, current.detail)
    diagnosis = judgement.judge(evidence, selected)
    report.render(diagnosis, output, sys.stdout)
    if output_file is not None:
        with output_file.open("w") as stream:
            report.render(diagnosis, output, stream)
    if write:
        path = dotenv.write(settings.root, line := derived_line(evidence))
        click.echo(f"kvshare: {path.name} has {line.split('  #')[0]}; type make up to apply it", err=True)
    sys.exit(diagnosis.exit_code)
