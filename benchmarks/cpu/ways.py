"""The gateway against round robin and one server, by load, on the stack that is up.

make benchmarks ARGS="--part ways"
"""

from __future__ import annotations

from typing import Any

from benchmarks.tool import bench
from kvshare.bench.results import Arm, PointResult


def measure_ways() -> dict[str, Any]:
    """Return what `kvshare bench --through gateway` finds with its defaults."""
    document = bench("--through", "gateway")
    return {
        "verdict": document.verdict,
        "repetitions": document.repetitions,
        "loads": {str(result.point.load): _load(result) for result in document.points},
    }


def _load(result: PointResult) -> dict[str, Any]:
    return {
        "tokens": result.point.prompt_tokens,
        "clients": result.point.concurrency,
        "ways": {arm.arm: _figures(arm) for arm in result.arms if arm.ttft_ms is not None},
        "against": {
            one.way: {name: ratio.value for name, ratio in one.named.items()} for one in result.against
        },
    }


def _figures(arm: Arm) -> dict[str, Any]:
    return {
        "ttft_ms": arm.ttft_ms and arm.ttft_ms.p50,
        "ttft_p99_ms": arm.ttft_ms and arm.ttft_ms.p99,
        "tbt_p99_ms": arm.tbt_ms and arm.tbt_ms.p99,
        "per_s": arm.request_throughput,
        "computed": arm.sources.local_compute / arm.prompt_tokens,
    }


def section(found: dict[str, Any]) -> list[str]:
    """Return the section of docs/benchmarks.md."""
    rows = [
        f"| {load} | {name} | {way['ttft_ms']:.0f} | {way['ttft_p99_ms']:.0f} | {way['tbt_p99_ms']:.0f} "
        f"| {way['per_s']:.2f} | {100 * way['computed']:.0f} % |"
        for load, one in found["loads"].items()
        for name, way in one["ways"].items()
    ]
    first = next(iter(found["loads"].values()))
    return [
        "",
        "## Through the gateway, by load",
        "",
        "`kvshare bench --through gateway` ([bench.md](bench.md#through-the-gateway)):",
        f"{first['clients']} clients, prompts of up to {first['tokens']:,} tokens, on this machine's cores,",
        f"{found['repetitions']} repetitions. {found['verdict'].capitalize()}.",
        "",
        "| load | way | TTFT p50, ms | p99 | TBT p99, ms | req/s | tokens computed |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
