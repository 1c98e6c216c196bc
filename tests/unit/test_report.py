"""The report, word for word: table, short and JSON, for a proven run and for every fault.

Regenerate the golden files with `pytest tests/unit --update-golden`, and read the difference.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import jsonschema
import pytest

from kvshare import checks, report
from kvshare.evidence import REFERENCE, SAME_SPLIT, Evidence
from kvshare.judgement import judge
from tests.unit.build import edit_legs, proven
from tests.unit.faults import FAULTS, moved

SUFFIXES = {"table": "table.txt", "short": "short.txt", "json": "json"}
GOLDEN = Path(__file__).parent / "golden"
RUNS = {"proven": proven(), **{name: fault.evidence for name, fault in FAULTS.items()}}
IN_FULL = ("proven", "corrupted-v", "client-failed")  # the others' tables hold nothing that these do not


def rendered(evidence: Evidence, form: str) -> str:
    stream = io.StringIO()
    report.render([judge(evidence, checks.select((), ()))], form, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "short") for name in RUNS), *((name, form) for name in IN_FULL for form in ("table", "json"))],
)
def test_report_is_the_golden_one(name: str, form: str, update_golden: bool) -> None:
    text = rendered(RUNS[name], form)
    golden = GOLDEN / f"verify-{name}.{SUFFIXES[form]}"
    if update_golden:
        golden.write_text(text)
    assert text == golden.read_text()


def test_no_golden_file_is_left_over() -> None:
    names = {path.name.removeprefix("verify-").split(".")[0] for path in GOLDEN.glob("verify-*")}
    assert names == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_json_keeps_to_its_schema(name: str, root: Path) -> None:
    schema = json.loads((root / "docs/verify.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(rendered(RUNS[name], "json")), schema)


def test_json_has_no_infinity_where_answers_cannot_be_compared() -> None:
    evidence = edit_legs(proven(), SAME_SPLIT, moved(math.nan))
    body = json.loads(rendered(evidence, "json"))
    assert body["tolerance"]["noise"] is None
    assert body["cause"] == "KV-RIGHT-01"


def test_first_pull_is_shown_apart_and_in_no_median() -> None:
    body = json.loads(rendered(proven(), "json"))
    peers = [leg for leg in body["legs"] if leg["leg"] == "peer"]
    assert [leg["warm_up"] for leg in peers] == [True, False, False, False]
    assert body["first_pull_ms"] == peers[0]["ttft_ms"]
    assert body["ttft_median_ms"]["peer"] == peers[2]["ttft_ms"]


def test_no_time_no_table() -> None:
    evidence = edit_legs(proven(), REFERENCE, moved(0.0))
    assert "time to first token" in rendered(evidence, "table")
    assert "time to first token" not in rendered(FAULTS["client-failed"].evidence, "table")


def test_plain_text_where_there_is_no_terminal() -> None:
    assert "\x1b" not in rendered(FAULTS["corrupted-v"].evidence, "table")
