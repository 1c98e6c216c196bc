"""docs/reliability.md says what the long form of the faults left, and every fault has its line."""

from __future__ import annotations

import re
from dataclasses import replace

from benchmarks.results import read
from tests.conftest import ROOT
from tests.scenarios.under_faults.figures import RESULTS, WITHOUT, render
from tests.scenarios.under_traffic.cures import CURES

FOLDER = ROOT / "tests/scenarios/under_faults"


def test_the_document_is_current() -> None:
    assert (ROOT / "docs/reliability.md").read_text() == render(read(RESULTS)), "make generate"


def test_every_fault_has_its_line() -> None:
    folders = {path.parent.name for path in FOLDER.glob("*/test_*.py")}
    found = {result.found["fault"] for result in read(RESULTS).values()}
    assert folders <= found <= folders | {"under_traffic", WITHOUT}


def test_each_cure_that_was_taken_out_is_there() -> None:
    found = {one.found["variant"] for one in read(RESULTS).values() if one.found["fault"] == WITHOUT}
    assert found <= {cure.name for cure in CURES}


def test_each_line_says_what_it_vouches_for() -> None:
    rows = [
        line for line in render(read(RESULTS)).splitlines() if re.search(r"\| 20[\d-]+, [\w-]+ \|$", line)
    ]
    said = [line.split(" | ")[-1].removesuffix(" |") for line in rows]
    assert sorted(said) == sorted(f"{one.on.date}, {one.on.commit}" for one in read(RESULTS).values())


def test_what_did_not_pass_is_said() -> None:
    for one in read(RESULTS).values():
        assert "**no**" not in render({one.part: one})
        assert "| **no** |" in render({one.part: replace(one, found={**one.found, "passed": False})})


def test_no_fault_that_passed_lost_a_request_or_an_answer() -> None:
    passed = [one.found for one in read(RESULTS).values() if one.found["passed"]]
    assert [found for found in passed if found["failures"] or found["wrong"]] == []
