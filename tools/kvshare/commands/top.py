"""`kvshare top`: what the stack does now."""

import sys
import time

import click

from kvshare.config.settings import find_root, load_settings
from kvshare.errors import INTERRUPTED


@click.command()
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.5),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("--once", is_flag=True, help="Two looks, one table, and out.")
def top(every_s: float, once: bool) -> None:
    """Show live where prompts' KV comes from, what peers pull, and what runs, until Ctrl-C.

    LMCache's tokens are those of the server's own CPU memory and the peer's together; what an owner sent is
    beside its name.
    """
    from rich.console import Console
    from rich.live import Live

    from kvshare.site.compose import read_stack
    from kvshare.site.containers import Containers
    from kvshare.watch.top import frame, look

    settings = load_settings(find_root())
    stack = read_stack(settings)
    site, console = Containers(stack, settings), Console(file=sys.stdout, highlight=False, emoji=False)
    before = look(site)
    try:
        time.sleep(every_s)
        if once:
            console.print(frame(stack, before, look(site)))
            return
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                now = look(site)
                live.update(frame(stack, before, now), refresh=True)
                before = now
                time.sleep(every_s)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)  # the way to end it
