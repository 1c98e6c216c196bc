"""`kvshare status`: where each node runs, how it is, and what the controller knows of it."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

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
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write one page as well, with what the servers do just now.",
)
def status(output: str, page: Path | None) -> None:
    """Show each node: where it runs, how it is, and whether the controller knows its LMCache worker.

    Exit code 1 unless all are healthy and known to it, 3 if an engine does not answer; the others are shown
    all the same.
    """
    from kvshare.operate import status as look
    from kvshare.site.compose import read_stack
    from kvshare.site.containers import Containers
    from kvshare.watch.page import Grid, html

    settings = load_settings(find_root())
    site = Containers(read_stack(settings), settings)
    rows = look.status(site)
    if output == "json":
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        look.print_table(rows, sys.stdout)
    well = all(row.is_well for row in rows)
    if page is not None:
        members = Grid("Members", look.HEADINGS, [look.cells(row) for row in rows])
        page.write_text(html(site, well, members))
    unreachable = look.unreachable(rows)
    complain(unreachable)
    sys.exit(COULD_NOT_CHECK if unreachable else PROVEN if well else FAILED)
