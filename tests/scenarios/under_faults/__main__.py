"""The long form of every fault, or of what pytest is told; writes docs/reliability.md (make test-faults)."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.machine import machine
from tests.conftest import ROOT
from tests.scenarios.under_faults.conftest import FIGURES
from tests.scenarios.under_faults.figures import RESULTS, Figures, render

DOCUMENT = ROOT / "docs/reliability.md"


class Keeper:
    """Takes the figures of what ran, and whether it passed; those of the others stay as they were."""

    def __init__(self) -> None:
        self.passed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        recorded = session.config.stash.get(FIGURES, {})
        if figures := [replace(one, passed=test in self.passed) for test, one in recorded.items()]:
            keep(figures)


def keep(figures: list[Figures]) -> None:
    """Write results.json and the document."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"faults": []}
    faults = {(one["fault"], one["variant"]): one for one in (*results["faults"], *map(asdict, figures))}
    results |= {"machine": machine(), "faults": [faults[key] for key in sorted(faults)]}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    DOCUMENT.write_text(render(results))


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).parent), "--long", *sys.argv[1:]], plugins=[Keeper()]))
