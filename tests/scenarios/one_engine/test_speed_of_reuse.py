"""`kvshare bench` on the real stack: the arms get what they stand for, and vLLM's own benchmark agrees."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from statistics import median
from typing import Any

import jsonschema
import pytest

from kvshare.servers.readings import Sources
from kvshare.servers.server import ServerClient
from tests import vllm_bench
from tests.conftest import ROOT
from tests.scenarios.conftest import Outcome, Rig

TOKENS, CHUNK = 522, 256
ROUNDS, REQUESTS, OUTPUT = 5, 12, 32
MODEL, PREFILL = "/models/kvshare-demo", "http://127.0.0.1:8010"

pytestmark = pytest.mark.timeout(1800)


def bench(rig: Rig, out: Path, *options: str) -> tuple[Outcome, dict[str, Any]]:
    outcome = rig.kvshare("bench", "--out", str(out), *options, timeout=900)
    return outcome, json.loads((out / "bench.json").read_text())


def arms(document: dict[str, Any], point: int = 0) -> dict[str, dict[str, Any]]:
    return {arm["arm"]: arm for arm in document["points"][point]["arms"]}


def test_every_arm_gets_its_tokens_from_where_it_must(rig: Rig, tmp_path: Path) -> None:
    rig.use()
    outcome, document = bench(
        rig, tmp_path, "--prompt-tokens", f"266,{TOKENS}", "--output-tokens", "8", "--repetitions", "3"
    )
    assert outcome.code == 0, outcome.said
    jsonschema.validate(document, json.loads((ROOT / "docs/bench.schema.json").read_text()))
    assert document["model"]["kv_bytes_per_token"] == 25600
    assert document["moved_tokens"] == 3 * (256 + 512)
    shared = 3 * 2 * CHUNK
    found = {name: arm["sources"] for name, arm in arms(document, 1).items()}
    assert found["cold"] == {"local_compute": 3 * TOKENS, "local_cache_hit": 0, "external_kv_transfer": 0}
    assert found["local-prefix"]["local_cache_hit"] == shared
    assert found["local-lmcache"]["external_kv_transfer"] == found["peer"]["external_kv_transfer"] == shared
    assert found["recompute"]["external_kv_transfer"] == 0
    assert [result["transfer"]["pulls"] for result in document["points"]] == [3, 3]


def test_the_stages_of_a_peer_hit_add_up(rig: Rig, tmp_path: Path, long: bool) -> None:
    """One of three runs must: what else the machine does falls between the stages, too."""
    if not long:
        pytest.skip("times, which a busy machine moves: make test-long")
    rig.use()
    sums = []
    for number in range(3):
        outcome, document = bench(
            rig, tmp_path / str(number), "--arms", "peer", "--prompt-tokens", str(TOKENS)
        )
        assert outcome.code == 0, outcome.said
        stages = document["points"][0]["stages"]
        assert stages["requests"] == 5
        sums.append(stages["sum_ms"] / stages["ttft_ms"])
        if sums[-1] == pytest.approx(1, abs=0.05):
            return
    pytest.fail(f"the stages are {sums} of what the client measured")


def run_vllm_bench(rig: Rig, seed: int) -> dict[str, Any]:
    """Run `vllm bench serve` in prefill's own container, on fresh prompts of the same length.

    On two cores it must not work before the server, whose tokens would be late, nor after everything else,
    or it sees the first token late.
    """
    folder = "/tmp/kvshare"
    trace = shlex.quote(vllm_bench.trace(TOKENS, OUTPUT, REQUESTS, seed))
    rig.compose("exec", "-T", "prefill", "sh", "-c", f"printf %s {trace} > {folder}/{vllm_bench.TRACE}")
    before = sources_of_prefill()
    command = vllm_bench.command(MODEL, PREFILL, TOKENS, folder)
    rig.compose("exec", "-T", "prefill", "nice", "-n", "10", *command)
    moved = sources_of_prefill() - before
    assert moved.total == moved.local_compute, "a warm cache has flattered vLLM's benchmark"
    assert moved.total == TOKENS * REQUESTS
    found: dict[str, Any] = json.loads(
        rig.compose("exec", "-T", "prefill", "cat", f"{folder}/{vllm_bench.RESULT}")
    )
    return found


def sources_of_prefill() -> Sources:
    found = ServerClient(PREFILL).read()
    assert found is not None
    assert found.sources is not None
    return found.sources


def test_vllms_own_benchmark_agrees(rig: Rig, tmp_path: Path, long: bool) -> None:
    """Both on one server, turn by turn; the median of the turns' ratios must be 1."""
    if not long:
        pytest.skip("takes minutes on a machine that does nothing else: make test-long")
    rig.use()
    draw = random.Random(5)
    ours: dict[str, list[float]] = {"ttft": [], "tpot": [], "throughput": []}
    theirs: dict[str, list[float]] = {"ttft": [], "tpot": [], "throughput": []}
    for number in range(ROUNDS):
        other = run_vllm_bench(rig, draw.randrange(2**31))
        theirs["ttft"].append(other["median_ttft_ms"])
        theirs["tpot"].append(other["median_tpot_ms"])
        theirs["throughput"].append(other["output_throughput"])
        outcome, document = bench(
            rig, tmp_path / str(number), "--arms", "cold", "--prompt-tokens", str(TOKENS),
            "--output-tokens", str(OUTPUT), "--requests", str(REQUESTS), "--repetitions", "1",
        )  # fmt: skip
        assert outcome.code == 0, outcome.said
        cold = arms(document)["cold"]
        ours["ttft"].append(cold["ttft_ms"]["p50"])
        ours["tpot"].append(cold["tpot_ms"]["p50"])
        ours["throughput"].append(cold["output_throughput"])
    for name in ours:
        ratios = [mine / other for mine, other in zip(ours[name], theirs[name], strict=True)]
        assert median(ratios) == pytest.approx(1, abs=vllm_bench.AGREEMENT), (name, ours, theirs)
