"""docs/reliability.md says what the long form of the faults left, and every fault has its line."""

from __future__ import annotations

import json
from typing import Any

from tests.conftest import ROOT
from tests.scenarios.under_faults.figures import RESULTS, render

FOLDER = ROOT / "tests/scenarios/under_faults"


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def test_the_document_is_current() -> None:
    assert (ROOT / "docs/reliability.md").read_text() == render(results()), "make test-faults"


def test_every_fault_has_its_line() -> None:
    folders = {path.parent.name for path in FOLDER.glob("*/test_*.py")}
    assert {one["fault"] for one in results()["faults"]} == folders


def test_what_did_not_pass_is_said() -> None:
    one = results()["faults"][0]
    row = render({**results(), "faults": [{**one, "passed": False}]}).split("| --- |")[-1]
    assert "**no**" in row


def test_no_fault_that_passed_lost_a_request_or_an_answer() -> None:
    assert [one for one in results()["faults"] if one["passed"] and (one["failures"] or one["wrong"])] == []
