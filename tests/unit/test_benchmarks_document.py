"""docs/benchmarks.md says what was measured, and on what; measured data is one line a record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import PARTS, RESULTS, ROWS, SECTIONS, document
from benchmarks.gpu import RESULTS as GPUS
from benchmarks.machine import Machine, machine
from benchmarks.results import Result, keep, last, read
from tests.conftest import ROOT
from tests.scenarios.under_faults.figures import RESULTS as FAULTS

HERE = Machine("2026-11-26", "1234567", cores=2, cpu="AMD EPYC", memory_gib=23.5, system="Debian")


def test_the_document_is_current() -> None:
    assert (ROOT / "docs/benchmarks.md").read_text() == document(read(RESULTS)), "make generate"


def test_every_part_is_told() -> None:
    assert {*ROWS, *SECTIONS} == set(PARTS)


def test_what_the_gateway_costs_is_its_difference_and_its_share() -> None:
    found = {"direct_ms": 0.5, "gateway_ms": 1.75, "direct_p99_ms": 1.0, "gateway_p99_ms": 3.0}
    rates = {"direct_per_s": 200.0, "gateway_per_s": 199.0}
    line = SECTIONS["gateway"]({"short": {"64": found | rates}})[-1]
    assert line == "| short | 64 | 0.50 | 1.75 | 1.25 | 1.0 | 3.0 | 200.0 | 0.995 |"


def test_the_ways_are_told_by_load_with_their_verdict() -> None:
    way = {"ttft_ms": 80.4, "ttft_p99_ms": 900.6, "tbt_p99_ms": 30.0, "per_s": 4.0, "computed": 1.5}
    load = {"tokens": 1546, "clients": 4, "ways": {"gateway": way}, "against": {}}
    found = {
        "verdict": "worth it for documents; loses nowhere",
        "repetitions": 5,
        "loads": {"documents": load},
    }
    lines = SECTIONS["ways"](found)
    assert "Worth it for documents; loses nowhere." in " ".join(lines)
    assert lines[-1] == "| documents | gateway | 80 | 901 | 30 | 4.00 | 150 % |"


def test_what_is_of_another_run_says_so() -> None:
    results = read(RESULTS)
    newest = last(results)
    again, pulls = results["again"], results["pulls"]
    assert "demo` again | " in document({**results, "again": replace(again, on=newest)})
    older = replace(newest, date="2026-01-02", commit="7654321")
    text = document({**results, "again": replace(again, on=older), "pulls": replace(pulls, on=older)})
    assert "| `make demo` again, 2026-01-02 | " in text
    assert "\n\nRun on 2026-01-02, commit 7654321.\n" in text.split("## What a pull costs")[1].split("##")[0]


def test_hardware_is_named_where_it_is_another() -> None:
    with_gpu = replace(HERE, gpus=2, gpu="NVIDIA H100", driver="580.1", cores=32)
    assert with_gpu.unlike(HERE) == (
        "Run on 2026-11-26, commit 1234567: 2 NVIDIA H100, driver 580.1, 32 CPU cores."
    )
    assert HERE.unlike(HERE) == ""


def test_a_machine_without_git_measures_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine().commit == "unknown"


def test_a_record_is_a_line_and_replaces_the_earlier_one_of_its_part(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    keep(path, [Result("verify", HERE, {"proven": 19}), Result("pulls", HERE, [1, 2])])
    keep(path, [Result("verify", replace(HERE, commit="7654321"), {"proven": 20})])
    assert len(path.read_text().splitlines()) == 2
    assert [(r.part, r.on.commit, r.found) for r in read(path).values()] == [
        ("verify", "7654321", {"proven": 20}),
        ("pulls", "1234567", [1, 2]),
    ]


@pytest.mark.parametrize("path", [RESULTS, FAULTS, *sorted(GPUS.glob("*.jsonl"))], ids=lambda path: path.stem)
def test_a_new_figure_leaves_the_other_lines_as_they_are(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    keep(copy, [])
    assert copy.read_text() == path.read_text()


def test_both_ways_of_sharing_stand_side_by_side_with_both_their_starts() -> None:
    def turn(sharing: str, fixed_ms: float) -> dict[str, Any]:
        points = [
            {
                "prompt_tokens": tokens,
                "arms": {
                    "peer": {"ttft_ms": fixed_ms + 0.02 * (tokens - 10), "request_throughput": 5.0},
                    "recompute": {"ttft_ms": 0.5 * tokens},
                },
            }
            for tokens in (266, 522, 1034)
        ]
        measured = {"kv_bytes_per_token": 20_000, "points": points}
        times = {"start_s": 30.0, "peak_bytes": 6 * 1024**3}
        return {"sharing": sharing, "lengths": measured, "load": load(sharing), **times}

    def load(sharing: str) -> dict[str, Any]:
        """16 clients; of those with cache servers no repetition counts."""
        lost = [f"repetition {n}, peer not counted: 6144 of 8192 tokens came from LMCache" for n in range(5)]
        found = {"recompute": {"request_throughput": 3.0}}
        if sharing == "controller":
            lost, found["peer"] = [], {"request_throughput": 5.0}
        return {"points": [{"arms": found, "repetitions": 5, "notes": lost}]}

    turns = [
        turn("controller", 30),
        turn("multiprocess", 40),
        turn("multiprocess", 42),
        turn("controller", 31),
    ]
    lines = SECTIONS["sharing"]({"turns": turns, "lines": {"controller": 900, "multiprocess": 300}})
    assert "| TTFT, peer, 522 tokens, ms | 40, 41 | 50, 52 |" in lines
    assert "| fixed cost of a pull, ms | 30, 31 | 40, 42 |" in lines
    assert "| a pull's speed, copies included, GB/s | 1.00, 1.00 | 1.00, 1.00 |" in lines
    assert "| 16 clients, peer, requests a second | 5.0, 5.0 | –, – |" in lines
    assert "| repetitions of it in which all was pulled | 5 of 5, 5 of 5 | 0 of 5, 0 of 5 |" in lines
    assert "300 are for cache servers alone, and 900 for all else" in lines[-1]
