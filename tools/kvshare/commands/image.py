"""`kvshare image`: build the images."""

import click

from kvshare.config.settings import find_root, load_settings, validate_node


@click.command()
@click.argument("node", default="all")
@click.option("--on", "context", metavar="CONTEXT", help="Build on this Docker context instead of NODE's.")
def image(node: str, context: str | None) -> None:
    """Build the engine and client images for DEVICE on NODE's engine: prefill, decode, or all.

    What is built in one place can go to the other with `make ship`, or `make push` and `make pull`.
    """
    from kvshare.operate.build import build
    from kvshare.site.compose import read_stack
    from kvshare.site.engine import engine
    from kvshare.stack.members import by_context, members_of

    settings = load_settings(find_root())
    validate_node(node, settings)
    if context is not None:
        engine(context).supported()
    members = members_of(read_stack(settings), node)
    for name in [context] if context else by_context(members):
        build(settings, name)
