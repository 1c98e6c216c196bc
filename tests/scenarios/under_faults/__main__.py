"""The long form of every fault, or of what pytest is told; writes docs/reliability.md (make test-faults)."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.machine import machine
from tests.conftest import ROOT
from tests.scenarios.under_faults.conftest import FIGURES
from tests.scenarios.under_faults.figures import RESULTS, Figures, render

DOCUMENT = ROOT / "docs/reliability.md"


class Keeper:
    """Takes the figures of a run that passed; those of faults that were not run stay as they were."""

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        figures = session.config.stash.get(FIGURES, [])
        if exitstatus == 0 and figures:
            keep(figures)


def keep(figures: list[Figures]) -> None:
    """Write results.json and the document."""
    known = json.loads(RESULTS.read_text())["faults"] if RESULTS.exists() else []
    faults = {(one["fault"], one["variant"]): one for one in (*known, *map(asdict, figures))}
    results = {"machine": machine(), "faults": [faults[key] for key in sorted(faults)]}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    DOCUMENT.write_text(render(results))


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).parent), "--long", *sys.argv[1:]], plugins=[Keeper()]))
