"""Measured data: JSON lines, a record a line, each with what it was measured on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import Machine


@dataclass(frozen=True)
class Result:
    """What the run of one part found, and on what."""

    part: str
    on: Machine
    found: Any


Results = dict[str, Result]  # by part


def read(path: Path) -> Results:
    """Return the results in the file's order; none if there is no file."""
    results: Results = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        results[record["part"]] = Result(record["part"], Machine(**record["on"]), record["found"])
    return results


def keep(path: Path, new: Iterable[Result]) -> Results:
    """Put each result in the place of the earlier one of its part, or at the end; return all."""
    results = read(path) | {result.part: result for result in new}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{_line(result)}\n" for result in results.values()))
    return results


def last(results: Results) -> Machine:
    """Return what the newest result was measured on."""
    return max((result.on for result in results.values()), key=lambda on: on.date)


def _line(result: Result) -> str:
    on = {name: value for name, value in asdict(result.on).items() if value}
    return json.dumps({"part": result.part, "on": on, "found": result.found})
