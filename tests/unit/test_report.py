"""The report, word for word for people, for a proven run and for every fault; its figures for programs.

Regenerate the golden files with `pytest tests/unit --update-golden`, and read the difference.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from kvshare.checking.patches import expected_patches
from kvshare.verify import checks, report
from kvshare.verify.evidence import REFERENCE, SAME_SPLIT, Evidence
from kvshare.verify.judgement import Judgement, judge
from tests.unit.build import deep, edit_legs, proven
from tests.unit.faults import FAULTS, all_of, moved
from tests.unit.multiprocess_build import beside

GOLDEN = Path(__file__).parent / "golden"
RUNS = {
    "proven": proven(),
    "mp-proven": beside(),
    "deep": deep(),
    **{name: fault.evidence for name, fault in FAULTS.items()},
}
IN_FULL = (
    "proven",
    "mp-proven",
    "deep",
    "corrupted-v",
    "client-failed",
)  # the others' tables hold nothing that these do not


def rendered(evidence: Evidence, form: str) -> str:
    stream = io.StringIO()
    report.render([judge(evidence, all_of(evidence))], form, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "short") for name in RUNS), *((name, "table") for name in IN_FULL)],
)
def test_report_is_the_golden_one(name: str, form: str, update_golden: bool) -> None:
    text = rendered(RUNS[name], form)
    golden = GOLDEN / f"verify-{name}.{form}.txt"
    if update_golden:
        golden.write_text(text)
    assert text == golden.read_text()


def test_no_golden_file_is_left_over() -> None:
    names = {path.name.removeprefix("verify-").split(".")[0] for path in GOLDEN.glob("verify-*")}
    assert names == set(RUNS)


def two_nodes(second: Evidence) -> list[Judgement]:
    """A proven run on decode-1, and the second's on decode-2."""
    judged = []
    for number, evidence in enumerate((proven(), second), start=1):
        decode = replace(evidence.stack.decode, name=f"decode-{number}")
        named = replace(evidence, stack=replace(evidence.stack, decodes=(decode,)))
        judged.append(judge(named, checks.select((), ())))
    return judged


def test_several_decode_nodes_are_reported_one_by_one(root: Path) -> None:
    stream = io.StringIO()
    report.render(two_nodes(FAULTS["corrupted-v"].evidence), "json", stream)
    body = json.loads(stream.getvalue())
    jsonschema.validate(body, json.loads((root / "docs/verify.schema.json").read_text()))
    assert (body["proven"], body["exit"]) == (False, 1)
    assert {name: node["proven"] for name, node in body["nodes"].items()} == {
        "decode-1": True,
        "decode-2": False,
    }


def test_each_of_several_decode_nodes_has_its_heading() -> None:
    stream = io.StringIO()
    report.render(two_nodes(proven()), "short", stream)
    headings = [line for line in stream.getvalue().splitlines() if line.startswith("===")]
    assert headings == [f"=== decode-{n} on 192.168.110.97 (context gpu-b) ===" for n in (1, 2)]


def test_json_has_no_infinity_where_answers_cannot_be_compared() -> None:
    evidence = edit_legs(proven(), SAME_SPLIT, moved(math.nan))
    body = json.loads(rendered(evidence, "json"))
    assert body["tolerance"]["noise"] is None
    assert body["cause"] == "KV-RIGHT-01"


def test_json_holds_the_figures_of_the_run() -> None:
    body = json.loads(rendered(proven(), "json"))
    assert body["ledger"] == {
        "reusable_tokens": 1536,
        "prompt_tokens": 1546,
        "sources": {
            "reference": {"local_compute": 6184, "local_cache_hit": 0, "external_kv_transfer": 0},
            "same split": {"local_compute": 40, "local_cache_hit": 6144, "external_kv_transfer": 0},
            "peer": {"local_compute": 40, "local_cache_hit": 0, "external_kv_transfer": 6144},
            "control": {"local_compute": 1546, "local_cache_hit": 0, "external_kv_transfer": 0},
        },
        "owner_transfers": 4,
        "owner_transfers_for_control": 0,
        "decode_hit_tokens": 6144,
        "decode_requested_tokens": 6144,
    }
    assert body["ttft_median_ms"] == {"reference": 3520, "same split": 170, "peer": 720, "control": 3640}
    assert body["worth"] == {
        "verdict": "worth it",
        "gain": pytest.approx(1 - 720 / 3520),
        "peer_over_cold": pytest.approx(720 / 3520),
    }
    assert (body["tolerance"]["limit"], body["seed"], body["cause"]) == (0.001, 7, None)
    assert body["fingerprints"]["decode"]["patches"] == sorted(expected_patches("cpu"))


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
