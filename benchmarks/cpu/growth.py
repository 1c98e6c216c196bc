"""How cost grows with prompt length and with concurrency, by `kvshare bench` on a running stack.

make benchmarks ARGS="--part growth"
"""

from __future__ import annotations

from typing import Any

from benchmarks.cpu import client_overhead
from benchmarks.summary import summary
from benchmarks.tool import bench

ARMS = ("cold", "local-prefix", "local-lmcache", "peer", "recompute")
LENGTHS = ("--prompt-tokens", "266,522,1034,1546")
LOADS = ("--prompt-tokens", "522", "--concurrency", "1,4,16", "--arms", "cold,peer,recompute")
STREAMS, TOKENS, GAP_S = 64, 128, 0.02


def measure_growth() -> dict[str, Any]:
    """Both sweeps on the stack that is up, and what the client itself adds to a token at 64 streams."""
    return {
        "lengths": summary(bench(*LENGTHS)),
        "loads": summary(bench(*LOADS)),
        "client": client_overhead.measure(STREAMS, TOKENS, GAP_S),
    }


def section(found: dict[str, Any]) -> list[str]:
    """Return the document's lines on growth."""
    lengths, loads, client = found["lengths"], found["loads"], found["client"]
    return [
        "",
        "## Growth",
        "",
        f"`kvshare bench`, medians of {lengths['repetitions']} repetitions, each ± the middle half's width; "
        f"{lengths['verdict']}.",
        "",
        "TTFT in ms by prompt length, one request in flight:",
        "",
        *_table("tokens", lengths, lambda point: f"{point['prompt_tokens']:,}"),
        *_transfers(lengths),
        "",
        "TTFT in ms by requests in flight, 522 tokens:",
        "",
        *_table("in flight", loads, lambda point: str(point["concurrency"])),
        "",
        "Output tokens a second by requests in flight:",
        "",
        *_table("in flight", loads, lambda point: str(point["concurrency"]), _throughput),
        "",
        f"The client's own processor time at {client['streams']} streams: {client['cpu_ms']:.3f} ms a token; "
        f"a token is stamped {client['p50_ms']:.2f} ms after its writing (median; goal ≤ 1 ms).",
    ]


def _table(heading: str, found: dict[str, Any], label: Any, cell: Any = None) -> list[str]:
    cell = cell or _ttft
    arms = [arm for arm in ARMS if any(arm in point["arms"] for point in found["points"])]
    rows = [
        f"| {label(point)} | {' | '.join(cell(point['arms'].get(arm)) for arm in arms)} |"
        for point in found["points"]
    ]
    return [f"| {heading} | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|", *rows]


def _ttft(arm: dict[str, Any] | None) -> str:
    return "" if arm is None else f"{arm['ttft_ms']:.0f} ± {arm['spread_ms']:.0f}"


def _throughput(arm: dict[str, Any] | None) -> str:
    return "" if arm is None or arm["output_throughput"] is None else f"{arm['output_throughput']:.1f}"


def _transfers(found: dict[str, Any]) -> list[str]:
    known = [
        point
        for point in found["points"]
        if point["transfer"] is not None and point["transfer"]["gb_per_s"] is not None
    ]
    if not known:
        return []
    rows = [
        f"| {point['prompt_tokens']:,} | {point['transfer']['mean_ms']:.1f} | "
        f"{point['transfer']['bytes_per_pull'] / 1e6:.1f} | {point['transfer']['gb_per_s']:.2f} |"
        for point in known
    ]
    link = found["link_gb_per_s"]
    beside = f", beside a link of {link:.2f} GB/s ({found['link_how']})" if link else ""
    return [
        "",
        f"KV transfer by the owner's count{beside}:",
        "",
        "| tokens | ms | MB | GB/s |",
        "|---|---|---|---|",
        *rows,
    ]
