"""docs/reliability.md says what the long form of the faults left, and every fault has its line."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.results import read
from tests.conftest import ROOT
from tests.scenarios.under_faults.figures import RESULTS, render

FOLDER = ROOT / "tests/scenarios/under_faults"


def test_the_document_is_current() -> None:
    assert (ROOT / "docs/reliability.md").read_text() == render(read(RESULTS)), "make generate"


def test_every_fault_has_its_line() -> None:
    folders = {path.parent.name for path in FOLDER.glob("*/test_*.py")}
    assert {result.found["fault"] for result in read(RESULTS).values()} == folders


def test_each_line_says_what_it_vouches_for() -> None:
    rows = [line for line in render(read(RESULTS)).splitlines() if line.startswith("| [")]
    said = [line.split(" | ")[-1].removesuffix(" |") for line in rows]
    assert sorted(said) == sorted(f"{one.on.date}, {one.on.commit}" for one in read(RESULTS).values())


def test_what_did_not_pass_is_said() -> None:
    one = next(iter(read(RESULTS).values()))
    row = render({one.part: replace(one, found={**one.found, "passed": False})}).split("| --- |")[-1]
    assert "**no**" in row


def test_no_fault_that_passed_lost_a_request_or_an_answer() -> None:
    passed = [one.found for one in read(RESULTS).values() if one.found["passed"]]
    assert [found for found in passed if found["failures"] or found["wrong"]] == []
