"""`kvshare push`: the images to a registry."""

import click

from kvshare.commands import options
from kvshare.config.settings import find_root, load_settings


@click.command()
@options.FROM
def push(source: str | None) -> None:
    """Push the images to the registry that REGISTRY in .env names, e.g. registry.example:5000/kvshare.

    With REGISTRY set, every command and plain `docker compose` use the images under that name.
    """
    from kvshare.operate import push as pushing
    from kvshare.site.compose import read_stack

    settings = load_settings(find_root())
    pushing.registry_of(settings)
    pushing.push(settings, read_stack(settings), source)
