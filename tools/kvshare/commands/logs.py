"""`kvshare logs`: every node's log, merged by time."""

import sys

import click

from kvshare.commands.options import complain
from kvshare.config.settings import find_root, load_settings
from kvshare.errors import COULD_NOT_CHECK, INTERRUPTED, PROVEN


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
    from kvshare.operate import logs as reader
    from kvshare.site.compose import read_stack
    from kvshare.site.containers import Containers

    settings = load_settings(find_root())
    stack = read_stack(settings)
    selection = reader.Selection(node, tail, since)
    site = Containers(stack, settings, reader.members_of(stack, selection))
    printer = reader.Printer(stack, sys.stdout)
    if not follow:
        lines, problems = reader.read(site, selection)
        for line in lines:
            printer.print(line)
        complain(problems)
        sys.exit(COULD_NOT_CHECK if problems else PROVEN)
    try:
        for line in reader.follow(site, selection, lambda problem: complain([problem])):
            printer.print(line)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)  # the way to end it; there is nothing to say
    sys.exit(COULD_NOT_CHECK)  # every log has ended, none of them by itself
