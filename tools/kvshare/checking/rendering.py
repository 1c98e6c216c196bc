"""Results of checks for people and for programs, the same for every command that makes checks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvshare import records
from kvshare.checking.registry import ERROR, SKIPPED, SUCCESS, WARNING, Result
from kvshare.checking.verdict import Verdict
from kvshare.records import Document

_MARKS = {SUCCESS: ("√", "green"), WARNING: ("‼", "yellow"), ERROR: ("×", "red"), SKIPPED: ("·", "dim")}


def plain_console(stream: TextIO) -> Console:
    """Return a console that adds nothing to the text but colour, and that only on a terminal."""
    return Console(file=stream, highlight=False, soft_wrap=True, emoji=False, markup=False)


def table(texts: Iterable[str], numbers: Iterable[str] = (), gap: int = 2) -> Table:
    """Return a table without lines: columns of text, then of numbers, ``gap`` spaces apart."""
    made = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for heading in texts:
        made.add_column(heading, no_wrap=True)
    for heading in numbers:
        made.add_column(heading, justify="right", no_wrap=True)
    return made


def print_verdict(
    console: Console, verdict: Verdict[Any], form: str, details: Callable[[Console], None]
) -> None:
    """Print a verdict: with ``details`` below all checks as ``table``, or only what is wrong as ``short``."""
    for category, results in by_category(verdict.results):
        shown = [one for one in results if form == "table" or one.result in (WARNING, ERROR)]
        if shown:
            console.print(Text(f"{category}\n{'-' * len(category)}", "bold"))
        for result in shown:
            print_result(console, result)
            if result.result in (WARNING, ERROR):
                console.print(f"    see {hint(result)} for hints")
        if shown:
            console.print()
    if form == "table":
        details(console)
    console.print(Text(verdict.sentence, "bold red" if verdict.exit_code else "bold green"))


def by_category(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    """Yield the results under their categories, in causal order."""
    for category, found in groupby(results, lambda result: result.check.category):
        yield category, list(found)


def hint(result: Result) -> str:
    """Return where the docs explain a check."""
    return f"docs/checks.md#{result.check.id.lower()}"


def write_json(document: Document, stream: TextIO) -> None:
    """Write a document; ValueError for what JSON has no number for."""
    stream.write(records.dumps(document, indent=2, allow_nan=False) + "\n")


def print_result(console: Console, result: Result) -> None:
    """Print one check's outcome."""
    mark, style = _MARKS[result.result]
    line = Text.assemble((mark, style), f" {result.check.id:<11}  {result.check.description}")
    if result.detail:
        line.append(f": {result.detail}", "dim")
    console.print(line)
    if result.result in (WARNING, ERROR):
        for name in ("expected", "found", "where", "next"):
            console.print(f"    {name:<8}  {getattr(result, name)}")
