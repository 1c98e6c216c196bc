"""Results of checks for people and for programs, the same for every command that makes checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from kvshare.checking.registry import ERROR, SKIPPED, SUCCESS, WARNING, Result
from kvshare.checking.verdict import Verdict

_MARKS = {SUCCESS: ("√", "green"), WARNING: ("‼", "yellow"), ERROR: ("×", "red"), SKIPPED: ("·", "dim")}


def plain_console(stream: TextIO) -> Console:
    """Return a console that adds nothing to the text but colour, and that only on a terminal."""
    return Console(file=stream, highlight=False, soft_wrap=True, emoji=False, markup=False)


def print_verdict(
    console: Console, verdict: Verdict[Any], form: str, details: Callable[[Console], None]
) -> None:
    """Print a verdict: with ``details`` below all checks as ``table``, or only what is wrong as ``short``."""
    print_checks(console, verdict.registry.categories, verdict.results, everything=form == "table")
    if form == "table":
        details(console)
    console.print(Text(verdict.sentence, "bold red" if verdict.exit_code else "bold green"))


def print_checks(
    console: Console, categories: Sequence[str], results: Sequence[Result], everything: bool
) -> None:
    """Print results under their categories: everything, or only what is wrong."""
    for category in categories:
        of_it = [r for r in results if r.check.category == category]
        shown = [r for r in of_it if everything or r.result in (WARNING, ERROR)]
        if shown:
            console.print(Text(f"{category}\n{'-' * len(category)}", "bold"))
            for result in shown:
                print_result(console, result)
                if result.result in (WARNING, ERROR):
                    console.print(f"    see {hint(result)} for hints")
            console.print()


def by_category(verdict: Verdict[Any]) -> list[dict[str, Any]]:
    """Return the results as JSON data, under their categories."""
    found = []
    for category in verdict.registry.categories:
        of_it = [r for r in verdict.results if r.check.category == category]
        if of_it:
            found.append({"name": category, "checks": [_as_json(result) for result in of_it]})
    return found


def hint(result: Result) -> str:
    """Return where the docs explain a check."""
    return f"docs/checks.md#{result.check.id.lower()}"


def write_json(document: dict[str, Any], stream: TextIO) -> None:
    """Write a JSON document; ValueError for what JSON has no number for."""
    stream.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


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


def _as_json(result: Result) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": result.check.id,
        "description": result.check.description,
        "result": result.result,
    }
    body |= {
        name: value
        for name in ("detail", "expected", "found", "where", "next")
        if (value := getattr(result, name))
    }
    return body | ({"hint": hint(result)} if result.result in (WARNING, ERROR) else {})
