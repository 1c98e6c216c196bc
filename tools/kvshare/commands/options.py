"""What several commands share: options, each worded once, and how they speak on stderr."""

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from kvshare import records
from kvshare.errors import KvshareError

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])
TABLE_WIDTH = 150


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


TIMEOUT = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(1),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the services may take to become healthy.",
)

FROM = click.option(
    "--from",
    "source",
    metavar="CONTEXT",
    help="Docker context to take the images from; by default the local engine, else prefill's.",
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


def task(cls: type[T], spec: str) -> T:
    """Return what the client container is asked to do; KvshareError if another version of the tool asks."""
    try:
        return records.loads(cls, spec)
    except ValueError as error:
        raise KvshareError(f"--spec makes no sense: {error}; type make image.") from None


def complain(sentences: Iterable[str]) -> None:
    """Say on stderr what went wrong, a line each."""
    for sentence in sentences:
        click.echo(f"kvshare: {sentence}", err=True)


def narrate(sentence: str) -> None:
    """Say on stderr how far it is."""
    click.echo(f"  {sentence}", err=True)


def wide_console() -> Console:
    """A console wide enough for the tables: a narrower terminal wraps whole lines rather than cells."""
    width = max(TABLE_WIDTH, shutil.get_terminal_size().columns)
    return Console(file=sys.stdout, highlight=False, soft_wrap=True, emoji=False, markup=False, width=width)
