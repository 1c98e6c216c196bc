"""`vllm bench serve` and `kvshare bench` on one server, turn by turn: their medians must agree."""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.bench import bench
from kvshare.bench import run
from kvshare.site.native import Native
from tests import vllm_bench

TOKENS, OUTPUT, REQUESTS, ROUNDS = 1034, 32, 16, 3
LIMIT_S = 150


def compare(native: Native, folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the turns' medians of each figure and of their ratios, and whether all are within 3 %."""
    draw = random.Random(5)
    theirs: dict[str, list[float]] = {}
    ours: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        _add(theirs, _theirs(native, draw.randrange(2**31)))
        _add(ours, _ours(native, folder / str(number)))
    pairs = {name: (median(ours[name]), median(theirs[name])) for name in ours}
    ratios = {
        name: median(mine / other for mine, other in zip(ours[name], theirs[name], strict=True))
        for name in ours
    }
    found = {"tokens": TOKENS, "output": OUTPUT, "requests": REQUESTS * ROUNDS, "pairs": pairs}
    return {**found, "ratios": ratios}, all(
        abs(ratio - 1) <= vllm_bench.AGREEMENT for ratio in ratios.values()
    )


def _add(to: dict[str, list[float]], figures: dict[str, float]) -> None:
    for name, figure in figures.items():
        to.setdefault(name, []).append(figure)


def _theirs(native: Native, seed: int) -> dict[str, float]:
    model = native.settings.get("MODEL", "")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / vllm_bench.TRACE).write_text(vllm_bench.trace(TOKENS, OUTPUT, REQUESTS, seed))
        command = vllm_bench.command(model, native.stack.prefill.url, TOKENS, folder)
        environment = dict(native.processes["prefill"].environment)
        subprocess.run(command, env=environment, timeout=LIMIT_S, check=True, capture_output=True)
        found = json.loads((Path(folder) / vllm_bench.RESULT).read_text())
    assert found["total_input_tokens"] == TOKENS * REQUESTS
    return {
        "median TTFT, ms": found["median_ttft_ms"],
        "median TPOT, ms": found["median_tpot_ms"],
        "output tokens a second": found["output_throughput"],
    }


def _ours(native: Native, folder: Path) -> dict[str, float]:
    options = run.Options(
        arms=("cold",),
        prompt_tokens=(TOKENS,),
        output_tokens=(OUTPUT,),
        requests=REQUESTS,
        repetitions=1,
    )
    (cold,) = bench(native, options, folder).points[0].arms
    assert cold.ttft_ms is not None
    assert cold.tpot_ms is not None
    assert cold.output_throughput is not None
    return {
        "median TTFT, ms": cold.ttft_ms.p50,
        "median TPOT, ms": cold.tpot_ms.p50,
        "output tokens a second": cold.output_throughput,
    }
