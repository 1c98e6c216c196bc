"""Sixteen clients that share half of each prompt: with something to pull against without, in both orders.

make benchmarks ARGS="--part load"
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from growth import run  # beside this file

from kvshare.bench import outputs
from kvshare.bench.spec import PEER, RECOMPUTE
from kvshare.bench.stats import median, percentile

# Not more: prefill holds 20,000 tokens of the demo model.
CLIENTS, REQUESTS, REPETITIONS, TOKENS, OUTPUT, SHARED = 16, 16, 8, 1034, 16, 50
FIGURES = {"ttft_ms": "TTFT, ms", "ttft_p99_ms": "TTFT p99, ms", "requests_per_s": "requests/s"}


def measure_load() -> dict[str, Any]:
    """Return the figures of decode's two arms on the stack that is up, apart by which went first."""
    with tempfile.TemporaryDirectory() as folder:
        run(
            "bench", "--prompt-tokens", str(TOKENS), "--output-tokens", str(OUTPUT), "--shared", str(SHARED),
            "--concurrency", str(CLIENTS), "--requests", str(REQUESTS), "--repetitions", str(REPETITIONS),
            "--arms", "cold,peer,recompute", "--out", folder,
        )  # fmt: skip
        lines = (Path(folder) / outputs.LINES).read_text().splitlines()
    return by_order([json.loads(text) for text in lines])


def by_order(requests: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return each arm's figures, by the arm that went first; the requests are in the order of the arms."""
    runs: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for request in requests:
        if request["counted"] and request["arm"] in (PEER, RECOMPUTE):
            runs[request["repetition"]][request["arm"]].append(request)
    orders = {}
    for first in (PEER, RECOMPUTE):
        kept = [arms for arms in runs.values() if len(arms) == 2 and next(iter(arms)) == first]
        orders[first] = {arm: _figures([arms[arm] for arms in kept]) for arm in (PEER, RECOMPUTE)}
    return orders


def _figures(runs: list[list[dict[str, Any]]]) -> dict[str, float]:
    times = sorted(request["ttft_ms"] for requests in runs for request in requests)
    return {
        "ttft_ms": median(times),
        "ttft_p99_ms": percentile(times, 99),
        "requests_per_s": median(len(requests) / _seconds(requests) for requests in runs),
    }


def _seconds(requests: list[dict[str, Any]]) -> float:
    end = max(request["sent_s"] + request["e2e_ms"] / 1000 for request in requests)
    return float(end - min(request["sent_s"] for request in requests))


def section(orders: dict[str, Any]) -> list[str]:
    """Return the document's lines on load."""
    rows = []
    for first, arms in orders.items():
        cells = [
            f"{peer:.1f} / {recompute:.1f} = {peer / recompute:.2f}"
            for peer, recompute in ((arms[PEER][name], arms[RECOMPUTE][name]) for name in FIGURES)
        ]
        rows.append(f"| {first} | {' | '.join(cells)} |")
    return [
        "",
        f"## {CLIENTS} clients, {SHARED} % of each prompt shared",
        "",
        f"`kvshare bench`, {TOKENS:,} prompt and {OUTPUT} output tokens, {REQUESTS} requests of an arm in",
        f"each of {REPETITIONS} repetitions. Decode pulls the shared half and computes the rest (peer), or",
        "computes as many such prompts with nothing to pull (recompute); the order is turned round every",
        "other time. Peer / recompute:",
        "",
        f"| first | {' | '.join(FIGURES.values())} |",
        "|---|---|---|---|",
        *rows,
    ]
