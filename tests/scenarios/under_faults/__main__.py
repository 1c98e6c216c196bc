"""The long form of every fault and of the oracle, or what pytest is told; into docs/reliability.md.

`--docs` writes it from what was measured, and runs nothing.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.machine import Machine, machine
from benchmarks.results import Result, keep, read
from tests.conftest import ROOT
from tests.scenarios.conftest import FIGURES
from tests.scenarios.under_faults.figures import RESULTS, Figures, render

HERE = Path(__file__).parent
DOCUMENT = ROOT / "docs/reliability.md"
SHOWN = ("--log-cli-level=INFO",)  # how far what takes an hour has come


class Keeper:
    """Takes the figures of what ran, and whether it passed; those of the others stay as they were."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.on = machine()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        recorded = session.config.stash.get(FIGURES, {})
        if figures := [replace(one, passed=test in self.passed) for test, one in recorded.items()]:
            write(figures, self.on)


def write(figures: list[Figures], on: Machine) -> None:
    """Keep the figures and write the document."""
    new = [Result(one.name, on, asdict(one)) for one in figures]
    DOCUMENT.write_text(render(keep(RESULTS, new)))


if __name__ == "__main__":
    if sys.argv[1:] == ["--docs"]:
        DOCUMENT.write_text(render(read(RESULTS)))
    else:
        sys.exit(
            pytest.main(
                [str(HERE), str(HERE.parent / "under_traffic"), "--long", *SHOWN, *sys.argv[1:]],
                plugins=[Keeper()],
            )
        )
