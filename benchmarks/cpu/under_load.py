"""Sixteen clients that share half of each prompt: with something to pull against without, in both orders.

make benchmarks ARGS="--part load"
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import orders
from benchmarks.tool import run
from kvshare.bench.spec import PEER, RECOMPUTE

# Not more: prefill holds 20,000 tokens of the demo model.
CLIENTS, REQUESTS, REPETITIONS, TOKENS, OUTPUT, SHARED = 16, 16, 8, 1034, 16, 50
SHOWN = ("ttft_ms", "ttft_p99_ms", "request_throughput")


def measure_load() -> orders.Orders:
    """Return the figures of decode's two arms on the stack that is up, apart by which went first."""
    with tempfile.TemporaryDirectory() as folder:
        run(
            "bench", "--prompt-tokens", str(TOKENS), "--output-tokens", str(OUTPUT), "--shared", str(SHARED),
            "--concurrency", str(CLIENTS), "--requests", str(REQUESTS), "--repetitions", str(REPETITIONS),
            "--arms", "cold,peer,recompute", "--out", folder,
        )  # fmt: skip
        return orders.of_folder(Path(folder))


def section(found: orders.Orders) -> list[str]:
    """Return the document's lines on load."""
    rows = []
    for first, arms in found.items():
        cells = [
            f"{peer:.1f} / {recompute:.1f} = {peer / recompute:.2f}"
            for peer, recompute in ((arms[PEER][name], arms[RECOMPUTE][name]) for name in SHOWN)
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
        f"| first | {' | '.join(orders.FIGURES[name] for name in SHOWN)} |",
        "|---|---|---|---|",
        *rows,
    ]
