"""docs/gpu.md and its pages say what runs left, and the runs came out as they must."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from benchmarks.gpu import RESULTS, document, never_slower, slug
from benchmarks.gpu.beside import beside_one_gpu
from benchmarks.gpu.break_even import near_break_even
from benchmarks.results import Results, last, read
from tests.conftest import ROOT

H100, H200 = (read(RESULTS / f"nvidia-{name}.jsonl") for name in ("h100-80gb-hbm3", "h200"))

FOUR_H100 = read(RESULTS / "4x-nvidia-h100-80gb-hbm3.jsonl")


def ratio(point: dict[str, Any], arm: str) -> float:
    """A peer hit's first token over that of another arm."""
    return float(point["arms"]["peer"]["ttft_ms"] / point["arms"][arm]["ttft_ms"])


def test_the_documents_are_current() -> None:
    documents = document.documents()
    assert {path: path.read_text() for path in documents} == documents, "make generate"
    assert set(document.PAGES.iterdir()) == set(documents) - {document.INDEX}, "a page of no machine"


def test_the_kernel_was_exact_with_the_patch_and_never_without() -> None:
    kernel = H100["kernel"].found
    assert kernel["exact_with"] == kernel["tried"]
    assert kernel["exact_without"] == {}


def test_the_chain_was_proven_with_the_patch_and_failed_on_the_answers_without() -> None:
    assert H200["with"].found["proven"]
    without = H100["without"].found
    assert {"KV-RIGHT-01", "KV-RIGHT-02"} <= set(without["failed"])
    assert without["checks"]["KV-PEER-01"][0] == "success"


def test_the_same_prompt_was_pulled_once_for_each_time_that_nobody_on_decode_held_it() -> None:
    again = H200["with/again"].found
    assert again["pulled"] == again["written"] == again["times"] // 2
    assert again["double_frees"] == 0


def test_fp8_was_proven_with_half_the_bytes() -> None:
    assert H200["fp8"].found["proven"]
    points = H200["with/bench"].found["points"]
    whole = {point["prompt_tokens"]: point["transfer"]["bytes_per_pull"] for point in points}
    for point in H200["fp8/bench"].found["points"]:
        assert point["transfer"]["bytes_per_pull"] == whole[point["prompt_tokens"]] / 2


def test_with_the_calibrated_threshold_no_length_was_slower_for_having_a_peer() -> None:
    """On the slower link one length's median lies above, where both arms compute; the noise tells."""
    fast, slow = (H200[f"with/{name}"].found["after"] for name in ("never-slower", "slow-link"))
    for point in (*fast, *slow):
        assert point["interval"][0] <= never_slower.NEVER_SLOWER
    assert all(point["ratio"] <= never_slower.NEVER_SLOWER for point in fast)
    assert fast[-1]["ratio"] < 0.5


def test_a_page_says_by_run_where_its_runs_disagree() -> None:
    section = near_break_even(H200)
    assert "| 1,034 tokens | 1,546 tokens |" in section
    for run in ("with/bench", "with/never-slower"):
        verdict = H200[run].found["verdict" if run == "with/bench" else "line"].split("; ")[-1]
        assert f" {verdict} " in section


def test_runs_that_agree_need_no_word() -> None:
    assert near_break_even({"with/bench": H200["with/bench"]}) == ""
    assert near_break_even({}) == ""


def test_a_figure_that_is_not_within_what_is_demanded_says_so() -> None:
    rows = [line for line in document.render(H200).splitlines() if line.startswith("| median TTFT, ms")]
    assert rows == ["| median TTFT, ms | 42.97 | 44.98 | 0.943 | **no** |"]


def test_the_readme_says_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text()
    for point in H200["with/bench"].found["points"]:
        if point["prompt_tokens"] in (4106, 32522):
            said = rf"{ratio(point, 'cold'):.2f} (of computing it )?at {point['prompt_tokens']:,}"
            assert re.search(said, readme)
    arms = H200["with/clients"].found["points"][0]["arms"]
    faster = arms["peer"]["request_throughput"] / arms["recompute"]["request_throughput"]
    assert re.search(rf"get {faster:.2f} times the requests", readme)
    pays_from = int(H200["with/never-slower"].found["line"].split()[0].split("=")[1])
    assert f"Below {pays_from:,} tokens" in readme


def test_two_gpus_a_node_stand_beside_one_of_the_same_run_alone() -> None:
    one = FOUR_H100["pair/bench"]
    both = {"pair/bench": one, "apart/bench": replace(FOUR_H100["apart/bench"], on=one.on)}
    section = beside_one_gpu(both)
    assert "| 4106 | 95.6 | 138.0 | 94.9 | 106.9 | 0.69 | 0.89 | 0.99 | 0.77 |" in section
    assert "requests/s" not in section
    assert beside_one_gpu({**both, "apart/bench": FOUR_H100["ranks/bench"]}) == ""
    assert beside_one_gpu({"pair/bench": one}) == ""


def test_a_part_that_was_not_run_is_left_out() -> None:
    only: Results = {"kernel": H100["kernel"]}
    assert "## The transfer kernel" in document.render(only)
    assert "Time to first token" not in document.render(only)


def test_machines_with_more_gpus_have_a_page_of_their_own() -> None:
    assert slug(last(H200)) == "nvidia-h200"
    assert slug(replace(last(H200), gpus=2)) == "2x-nvidia-h200"
