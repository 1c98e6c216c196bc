"""`kvshare down`: stop what up or demo started."""

import click

from kvshare.config.settings import find_root, load_settings


@click.command()
def down() -> None:
    """Stop and remove the stack's containers, on every context.

    A Docker engine that `make demo` or `make engine ARGS=start` had started is stopped too.
    Images and volumes stay.
    """
    from kvshare.operate import demo as demonstration
    from kvshare.site.compose import read_stack

    settings = load_settings(find_root())
    demonstration.stop(settings.root, settings, read_stack(settings))
