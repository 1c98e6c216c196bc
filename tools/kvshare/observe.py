"""The commands that look: status, logs, bundle."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from kvshare.errors import COULD_NOT_CHECK, FAILED, INTERRUPTED, PROVEN
from kvshare.settings import find_root, load_settings


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people, or JSON.",
)
def status(output: str) -> None:
    """Show each node: where it runs, how it is, and whether the controller knows its LMCache worker.

    Exit code 1 unless all are healthy and known to it, 3 if an engine does not answer; the others are shown
    all the same.
    """
    from kvshare import status as look
    from kvshare.stack import read_stack

    rows = look.status(read_stack(load_settings(find_root())))
    if output == "json":
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        look.print_table(rows, sys.stdout)
    unreachable = look.unreachable(rows)
    _complain(unreachable)
    well = PROVEN if all(row.is_well for row in rows) else FAILED
    sys.exit(COULD_NOT_CHECK if unreachable else well)


@click.command()
@click.option("--node", metavar="NAME", help="Only this node's: controller, prefill, decode or decode-2.")
@click.option(
    "--tail",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    metavar="N",
    help="At most the last N lines of each node.",
)
@click.option("--since", metavar="TIME", help="Only lines since then: 10m, 2h, or 2026-11-24T10:00:00Z.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
def logs(node: str | None, tail: int, since: str | None, follow: bool) -> None:
    """Print the logs of every node, on all contexts, merged by time, each line with its node's name.

    An engine that does not answer is named on stderr, the others' lines are printed, and the exit code is 3.
    """
    from kvshare import logs as reader
    from kvshare.stack import read_stack

    stack = read_stack(load_settings(find_root()))
    selection = reader.Selection(node, tail, since)
    printer = reader.Printer(stack, sys.stdout)
    if not follow:
        lines, problems = reader.read(stack, selection)
        printer.print_all(lines)
        _complain(problems)
        sys.exit(COULD_NOT_CHECK if problems else PROVEN)
    try:
        for line in reader.follow(stack, selection, lambda problem: _complain([problem])):
            printer.print(line)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)  # the way to end it; there is nothing to say
    sys.exit(COULD_NOT_CHECK)  # every log has ended, none of them by itself


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
    from kvshare import bundle as bundler

    path = file or bundler.default_path()
    settings = load_settings(find_root())
    contents = bundler.bundle(settings, path, bundler.Options(tail, evidence))
    _complain(f"not in it: {name}: {reason}" for name, reason in contents.missing.items())
    click.echo(path)


def _complain(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        click.echo(f"kvshare: {sentence}", err=True)
