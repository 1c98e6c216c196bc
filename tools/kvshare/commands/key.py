"""`kvshare key`: the cluster's key."""

import click

from kvshare.commands import options
from kvshare.config.settings import find_root, load_settings


@click.group()
def key() -> None:
    """The key by which nodes know each other, CLUSTER_KEY_FILE in .env."""


@key.command()
@options.TIMEOUT
def rotate(timeout_s: float) -> None:
    """Make another key and give it to every node, one after the other, without a lost request.

    Decode nodes first, each once it has answered what the gateway sent it, then prefill with the controller.
    Until the last has it nodes share less and compute more. What LMCache holds in memory is gone with each.
    """
    from kvshare.operate import rotate as rotation
    from kvshare.site.compose import read_stack

    settings = load_settings(find_root())
    rotation.rotate(settings, read_stack(settings), timeout_s)
    click.echo("kvshare: every node has the new key; make verify proves that they share KV again", err=True)
