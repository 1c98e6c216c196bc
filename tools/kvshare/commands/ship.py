"""`kvshare ship`: stream the images to another machine."""

import click

from kvshare.commands import options
from kvshare.config.settings import find_root, load_settings, validate_node


@click.command()
@click.argument("node", default="all")
@options.FROM
def ship(node: str, source: str | None) -> None:
    """Stream the images that NODE needs to its engine from one that has them, with no registry in between.

    NODE is prefill, decode or all. Does nothing where the image is the same already. Containers that run keep
    their image until the next `make up`.
    """
    from kvshare.operate import ship as shipping
    from kvshare.site.compose import read_stack

    settings = load_settings(find_root())
    validate_node(node, settings)
    shipping.run(settings, read_stack(settings), node, source)
