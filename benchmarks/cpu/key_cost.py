"""What the cluster's key costs: the same lookups and pulls of two pairs of nodes in turns, one with a key.

    .venv/bin/python -m benchmarks.cpu.key_cost         prints JSON; needs the image engine-cpu
    make benchmarks ARGS="--part key"                  and writes it into docs/benchmarks.md

As `benchmarks.cpu.pulls`: a pull's fixed part is the fit over its lengths; a lookup asks the controller for a
prompt that nobody holds. Both ways are in one run, the order turned round every round.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.cpu import pulls

KEY = "5b" * 32  # pragma: allowlist secret
WAYS, ROUNDS, MISS = ("without", "with"), 200, 0  # MISS: a pull of no chunk


def measure_key() -> dict[str, Any]:
    """Return by way, without a key and with one, a pull's fixed part and a lookup in ms, and their ratios."""
    load = os.getloadavg()[0]
    seconds = pulls.in_container("benchmarks.cpu.key_cost", "both", pulls.our_extra())
    found: dict[str, Any] = {way: _figures(seconds[way]) for way in WAYS}
    ratios = {what: found["with"][what] / found["without"][what] for what in found["with"]}
    return {**found, "ratio": ratios, "rounds": ROUNDS, "load_before": load, "load_after": os.getloadavg()[0]}


def section(found: dict[str, Any]) -> list[str]:
    """Return the lines of docs/benchmarks.md."""
    rows = (
        ("a lookup of what nobody holds", "lookup_ms"),
        ("a pull of 256 tokens", "pull_ms"),
        ("its fixed part, fitted", "t0_ms"),
    )
    return [
        "",
        "## What the cluster's key costs",
        "",
        "Two pairs of nodes as above, one with a key and one without, asked in turns in one run of",
        f"{found['rounds']} rounds (`benchmarks/cpu/key_cost.py`); medians. Load average "
        f"{found['load_before']:.1f} before, {found['load_after']:.1f} after.",
        "",
        "| | without | with | ratio |",
        "|---|---|---|---|",
        *(
            f"| {name} | {found['without'][what]:.2f} ms | {found['with'][what]:.2f} ms "
            f"| {found['ratio'][what]:.3f} |"
            for name, what in rows
        ),
    ]


def _figures(seconds: dict[str, list[float]]) -> dict[str, float]:
    medians = {int(chunks): statistics.median(values) for chunks, values in seconds.items()}
    lookup = medians.pop(MISS)
    return {
        "lookup_ms": lookup * 1000,
        "pull_ms": medians[1] * 1000,
        "t0_ms": pulls.fixed_ms(medians),
    }


# --- inside the container -----------------------------------------------------------------------------------


def _both(extra: dict[str, Any]) -> dict[str, dict[int, list[float]]]:
    """Seconds by way and chunks."""
    prompts = {chunks: chunks for chunks in pulls.LENGTHS}
    found = {way: {chunks: list[float]() for chunks in (MISS, *pulls.LENGTHS)} for way in WAYS}
    with tempfile.NamedTemporaryFile("w") as key:
        key.write(KEY)
        key.flush()
        with pulls.pair(extra, prompts) as without, pulls.pair(extra, prompts, key.name) as keyed:
            order: Sequence[tuple[str, Any]] = (("without", without), ("with", keyed))
            for turn in range(-1, ROUNDS):
                for way, node in order:
                    for chunks, values in found[way].items():
                        seconds = _seconds(node, chunks, f"{turn}-{chunks}")
                        if turn >= 0:  # the first of each warms up
                            values.append(seconds)
                order = order[::-1]
    return found


def _seconds(node: Any, chunks: int, request: str) -> float:
    if chunks:
        return pulls.pulled_s(node, chunks, chunks, request)
    return float(node.ask("get", seed=99, chunks=1, request=request)["seconds"])


if __name__ == "__main__":
    print(json.dumps(_both(json.loads(sys.argv[2])) if sys.argv[1:] else measure_key(), indent=None))
