"""`kvshare engine`: the local Docker engine, where nothing else starts it."""

import click

from kvshare.config.settings import find_root


@click.group()
def engine() -> None:
    """The local Docker engine, where nothing else starts it (no systemd)."""


@engine.command("start")
def engine_start() -> None:
    """Start the Docker engine unless one answers."""
    from kvshare.progress import step
    from kvshare.site import dockerd

    with step("Start the Docker engine"):
        dockerd.start(find_root())


@engine.command("stop")
def engine_stop() -> None:
    """Stop the Docker engine if start or `make demo` started it."""
    from kvshare.site import dockerd

    stopped = dockerd.stop(find_root())
    click.echo(
        f"kvshare: {'stopped the Docker engine' if stopped else 'no Docker engine of ours to stop'}", err=True
    )
