"""`kvshare pull`: the images from a registry."""

import click

from kvshare.config.settings import find_root, load_settings, validate_node


@click.command()
@click.argument("node", default="all")
def pull(node: str) -> None:
    """Pull the images that NODE needs onto its engine from the registry that REGISTRY in .env names."""
    from kvshare.operate import push as pushing
    from kvshare.site.compose import read_stack

    settings = load_settings(find_root())
    validate_node(node, settings)
    pushing.registry_of(settings)
    pushing.pull(settings, read_stack(settings), node)
