"""`kvshare up`: start a node and wait until it is healthy."""

import click

from kvshare.commands import options
from kvshare.config.settings import find_root, load_settings, validate_node


@click.command()
@click.argument("node", default="all")
@options.TIMEOUT
def up(node: str, timeout_s: float) -> None:
    """Start NODE and wait until it is healthy: prefill (brings controller and gateway), decode, or all.

    Of several decode nodes, decode means each, and decode-2 the second. Says which engine and host it acts on
    before it does.
    """
    from kvshare.doctor import here
    from kvshare.operate.up import start
    from kvshare.site.compose import read_stack
    from kvshare.site.engine import engine
    from kvshare.stack.members import members_of

    settings = load_settings(find_root())
    validate_node(node, settings)
    stack = read_stack(settings)
    members = members_of(stack, node)
    for member in members:
        about = engine(member.context).supported()
        click.echo(
            f"kvshare: {member.name} goes to {member.host}, context {member.context} "
            f"(Docker {about.version} on {about.host})",
            err=True,
        )
    here.require(settings, stack, members)
    start(settings, stack, node, timeout_s)
