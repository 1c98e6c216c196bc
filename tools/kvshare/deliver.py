"""The commands that get images to where they run: image, ship, push, pull."""

from __future__ import annotations

import click

from kvshare.settings import find_root, load_settings, validate_node

FROM = click.option(
    "--from",
    "source",
    metavar="CONTEXT",
    help="Docker context to take the images from; by default the local engine, else prefill's.",
)


@click.command()
@click.argument("node", default="all")
@click.option("--on", "context", metavar="CONTEXT", help="Build on this Docker context instead of NODE's.")
def image(node: str, context: str | None) -> None:
    """Build the engine and client images for DEVICE on NODE's engine: prefill, decode, or all.

    What is built in one place can go to the other with `kvshare ship`, or `kvshare push` and `kvshare pull`.
    """
    from kvshare import contexts, lifecycle
    from kvshare.stack import read_stack

    settings = load_settings(find_root())
    validate_node(node, settings)
    if context is not None:
        contexts.read_engine(context)
    members = lifecycle.members_of(read_stack(settings), node)
    for name in [context] if context else lifecycle.by_context(members):
        lifecycle.build(settings, name)


@click.command()
@click.argument("node", default="all")
@FROM
def ship(node: str, source: str | None) -> None:
    """Stream the images that NODE needs to its engine from one that has them, with no registry in between.

    NODE is prefill, decode or all. Does nothing where the image is the same already. Containers that run keep
    their image until the next `kvshare up`.
    """
    from kvshare import ship as shipping
    from kvshare.stack import read_stack

    settings = load_settings(find_root())
    validate_node(node, settings)
    shipping.run(settings, read_stack(settings), node, source)


@click.command()
@FROM
def push(source: str | None) -> None:
    """Push the images to the registry that REGISTRY in .env names, e.g. registry.example:5000/kvshare.

    With REGISTRY set, every command and plain `docker compose` use the images under that name.
    """
    from kvshare import push as pushing
    from kvshare.stack import read_stack

    settings = load_settings(find_root())
    pushing.registry_of(settings)
    pushing.push(settings, read_stack(settings), source)


@click.command()
@click.argument("node", default="all")
def pull(node: str) -> None:
    """Pull the images that NODE needs onto its engine from the registry that REGISTRY in .env names."""
    from kvshare import push as pushing
    from kvshare.stack import read_stack

    settings = load_settings(find_root())
    validate_node(node, settings)
    pushing.registry_of(settings)
    pushing.pull(settings, read_stack(settings), node)
