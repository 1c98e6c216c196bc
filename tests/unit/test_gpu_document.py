"""docs/gpu.md says what the run on the GPU left, and the run came out as it must."""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.gpu import document, never_slower
from tests.conftest import ROOT


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/gpu/results.json").read_text())
    return found


def test_the_document_is_current() -> None:
    assert (ROOT / "docs/gpu.md").read_text() == document.render(results()), "python -m benchmarks.gpu --docs"


def test_the_kernel_was_exact_with_the_patch_and_never_without() -> None:
    kernel = results()["kernel"]
    assert kernel["exact_with"] == kernel["tried"]
    assert kernel["exact_without"] == {}


def test_the_chain_was_proven_with_the_patch_and_failed_on_the_answers_without() -> None:
    found = results()
    assert found["with"]["proven"]
    assert {"KV-RIGHT-01", "KV-RIGHT-02"} <= set(found["without"]["failed"])
    assert found["without"]["checks"]["KV-PEER-01"][0] == "success"


def test_the_same_prompt_was_pulled_once_for_each_time_that_nobody_on_decode_held_it() -> None:
    again = results()["with"]["again"]
    assert again["pulled"] == again["written"] == again["times"] // 2
    assert again["double_frees"] == 0


def test_fp8_was_proven_with_half_the_bytes() -> None:
    found = results()
    assert found["fp8"]["proven"]
    whole = {p["prompt_tokens"]: p["transfer"]["bytes_per_pull"] for p in found["with"]["bench"]["points"]}
    for point in found["fp8"]["bench"]["points"]:
        assert point["transfer"]["bytes_per_pull"] == whole[point["prompt_tokens"]] / 2


def test_with_the_calibrated_threshold_no_length_was_slower_for_having_a_peer() -> None:
    """On the slower link one length's median lies above, where both arms compute; the noise tells."""
    found = results()["with"]
    for point in (*found["never-slower"]["after"], *found["slow-link"]["after"]):
        assert point["interval"][0] <= never_slower.NEVER_SLOWER
    assert all(point["ratio"] <= never_slower.NEVER_SLOWER for point in found["never-slower"]["after"])
    assert found["never-slower"]["after"][-1]["ratio"] < 0.5


def test_the_readme_says_what_was_measured() -> None:
    readme, found = (ROOT / "README.md").read_text(), results()["with"]
    for point in found["bench"]["points"]:
        if point["prompt_tokens"] in (4106, 32522):
            ratio = point["arms"]["peer"]["ttft_ms"] / point["arms"]["cold"]["ttft_ms"]
            assert re.search(rf"{ratio:.2f} (of computing it )?at {point['prompt_tokens']:,}", readme)
    arms = found["clients"]["points"][0]["arms"]
    faster = arms["peer"]["request_throughput"] / arms["recompute"]["request_throughput"]
    assert re.search(rf"get {faster:.2f} times the requests", readme)
    assert f"Below {int(found['never-slower']['line'].split()[0].split('=')[1]):,} tokens" in readme


def test_a_part_that_was_not_run_is_left_out() -> None:
    assert "Time to first token" not in document.render({"machine": results()["machine"]})
