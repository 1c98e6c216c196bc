"""The doctor's report, word for word for people; its figures for programs.

Regenerate the golden files with `pytest tests/unit --update-golden`, and read the difference.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from kvshare.doctor import checks, report
from kvshare.doctor.evidence import Evidence
from kvshare.doctor.judgement import judge
from tests.unit.doctor_build import healthy, running, with_gpus
from tests.unit.doctor_faults import FAULTS

GOLDEN = Path(__file__).parent / "golden"
HEALTHY = {"healthy": healthy(), "gpus": with_gpus(), "running": running(healthy())}
RUNS = {**HEALTHY, **{name: fault.evidence for name, fault in FAULTS.items()}}
IN_FULL = ("healthy", "gpus", "engine-unreachable", "host-is-docker0", "timeout-too-small")


def rendered(evidence: Evidence, form: str) -> str:
    stream = io.StringIO()
    report.render(judge(evidence, checks.select((), ())), form, stream)
    return stream.getvalue()


@pytest.mark.parametrize(("name", "form"), [(name, form) for name in IN_FULL for form in ("table", "short")])
def test_report_is_the_golden_one(name: str, form: str, update_golden: bool) -> None:
    text = rendered(RUNS[name], form)
    golden = GOLDEN / f"doctor-{name}.{form}.txt"
    if update_golden:
        golden.write_text(text)
    assert text == golden.read_text()


def test_no_golden_file_is_left_over() -> None:
    names = {path.name.removeprefix("doctor-").split(".")[0] for path in GOLDEN.glob("doctor-*")}
    assert names == set(IN_FULL)


@pytest.mark.parametrize("name", RUNS)
def test_json_says_whether_it_is_ready(name: str) -> None:
    body = json.loads(rendered(RUNS[name], "json"))
    assert body["ready"] == (name in HEALTHY or FAULTS[name].exit_code == 0)


def test_json_holds_what_was_seen_of_each_machine_and_link() -> None:
    evidence = with_gpus()
    body = json.loads(rendered(evidence, "json"))
    node, facts = body["nodes"]["decode"], evidence.seen["decode"]
    assert (node["host"], node["context"], node["engine"]) == ("192.168.110.97", "gpu-b", "26.1.5")
    assert (node["hostname"], node["cpus"], node["memlock_bytes"]) == ("machine-b", 2, None)
    memory = node["memory_total_bytes"], node["memory_available_bytes"]
    assert memory == (facts.memory_total, facts.memory_available)
    assert [card["name"] for card in node["interfaces"]] == ["docker0", "eth0", "lo"]
    assert (node["ucx"]["devices"], node["gpus"]["found"][0]) == ("eth0", ["0", "GPU-5f2d", "NVIDIA H200"])
    (link,), (seen,) = body["links"], evidence.links
    assert (link["from"], link["to"], link["error"]) == ("prefill", "decode", None)
    assert (link["bytes_per_s"], link["latency_s"]) == (seen.bytes_per_s, seen.latency_s)
    assert (link["meaning"]["longest_tokens"], link["meaning"]["timeout_ms"]) == (1600, 3000)


def test_json_of_a_machine_that_could_not_be_looked_at_says_why() -> None:
    body = json.loads(rendered(RUNS["engine-unreachable"], "json"))
    assert any(node["error"] and node["cpus"] is None for node in body["nodes"].values())


@pytest.mark.parametrize("name", IN_FULL)
def test_no_line_of_the_links_is_wider_than_a_terminal(name: str) -> None:
    table = rendered(RUNS[name], "table").split("KV's way")[1:]
    assert all(len(line) <= 80 for line in "".join(table).splitlines()[:2])


def test_plain_text_where_there_is_no_terminal() -> None:
    assert "\x1b" not in rendered(FAULTS["hash-seed"].evidence, "table")
