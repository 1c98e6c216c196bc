"""`kvshare status`: where each node runs, how it is, and what the controller knows of it."""

import json
import sys
from dataclasses import asdict

import click

from kvshare.commands.options import complain
from kvshare.config.settings import find_root, load_settings
from kvshare.errors import COULD_NOT_CHECK, FAILED, PROVEN


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
    from kvshare.operate import status as look
    from kvshare.site.compose import read_stack
    from kvshare.site.containers import Containers

    settings = load_settings(find_root())
    rows = look.status(Containers(read_stack(settings), settings))
    if output == "json":
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        look.print_table(rows, sys.stdout)
    unreachable = look.unreachable(rows)
    complain(unreachable)
    well = PROVEN if all(row.is_well for row in rows) else FAILED
    sys.exit(COULD_NOT_CHECK if unreachable else well)
