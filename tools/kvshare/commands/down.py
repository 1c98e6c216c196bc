"""`kvshare down`: stop what up or demo started."""

import click

from kvshare.config.settings import find_root, load_settings, validate_node


@click.command()
@click.argument("node", default="all")
def down(node: str) -> None:
    """Stop and remove the stack's containers, on every context; or those of NODE, such as decode-2.

    A decode node first ends what the gateway has sent it. A Docker engine that `make demo` or
    `make engine ARGS=start` had started is stopped with the whole stack. Images and volumes stay.
    """
    from kvshare.operate import demo as demonstration
    from kvshare.operate.down import stop_members
    from kvshare.site.compose import read_stack
    from kvshare.stack.members import members_of

    settings = load_settings(find_root())
    validate_node(node, settings)
    stack = read_stack(settings)
    if node == "all":
        demonstration.stop(settings.root, settings, stack)
    else:
        stop_members(settings, stack, members_of(stack, node))
