"""The doctor's report, word for word: table, short and JSON.

Regenerate the golden files with `pytest tests/unit --update-golden`, and read the difference.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
import pytest

from kvshare.doctor import checks, report
from kvshare.doctor.evidence import Evidence
from kvshare.doctor.judgement import judge
from tests.unit.doctor_build import healthy, running, with_gpus
from tests.unit.doctor_faults import FAULTS

SUFFIXES = {"table": "table.txt", "short": "short.txt", "json": "json"}
GOLDEN = Path(__file__).parent / "golden"
HEALTHY = {"healthy": healthy(), "gpus": with_gpus(), "running": running(healthy())}
RUNS = {**HEALTHY, **{name: fault.evidence for name, fault in FAULTS.items()}}
IN_FULL = ("healthy", "gpus", "engine-unreachable", "host-is-docker0", "timeout-too-small")


def rendered(evidence: Evidence, form: str) -> str:
    stream = io.StringIO()
    report.render(judge(evidence, checks.select((), ())), form, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in IN_FULL for form in ("table", "short", "json")]
)
def test_report_is_the_golden_one(name: str, form: str, update_golden: bool) -> None:
    text = rendered(RUNS[name], form)
    golden = GOLDEN / f"doctor-{name}.{SUFFIXES[form]}"
    if update_golden:
        golden.write_text(text)
    assert text == golden.read_text()


def test_no_golden_file_is_left_over() -> None:
    names = {path.name.removeprefix("doctor-").split(".")[0] for path in GOLDEN.glob("doctor-*")}
    assert names == set(IN_FULL)


@pytest.mark.parametrize("name", RUNS)
def test_json_keeps_to_its_schema(name: str, root: Path) -> None:
    schema = json.loads((root / "docs/doctor.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    body = json.loads(rendered(RUNS[name], "json"))
    jsonschema.validate(body, schema)
    assert body["ready"] == (name in HEALTHY or FAULTS[name].exit_code == 0)


@pytest.mark.parametrize("name", IN_FULL)
def test_no_line_of_the_links_is_wider_than_a_terminal(name: str) -> None:
    table = rendered(RUNS[name], "table").split("KV's way")[1:]
    assert all(len(line) <= 80 for line in "".join(table).splitlines()[:2])


def test_plain_text_where_there_is_no_terminal() -> None:
    assert "\x1b" not in rendered(FAULTS["hash-seed"].evidence, "table")
