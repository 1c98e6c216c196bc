"""Options that several commands take, each worded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

ONLY = click.option(
    "--only", multiple=True, metavar="ID", help="Judge only this check or category; may be repeated."
)
SKIP = click.option(
    "--skip", multiple=True, metavar="ID", help="Leave out this check or category; may be repeated."
)
OUTPUT_FILE = click.option(
    "--output-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report there as well, in the same format.",
)


def report_format(schema: str) -> Callable[[Command], Command]:
    """Return the option for the form of a report whose JSON a file under docs/ describes."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "short", "json"]),
        default="table",
        show_default=True,
        help=f"Everything, only what is wrong, or JSON as docs/{schema} describes it.",
    )


def wait(default_s: float, text: str) -> Callable[[Command], Command]:
    """Return the option for how long something may take; ``text`` says what."""
    return click.option(
        "--wait",
        "wait_s",
        type=click.FloatRange(0),
        default=default_s,
        show_default=True,
        metavar="SECONDS",
        help=text,
    )
