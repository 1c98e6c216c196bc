"""What a setting costs: the same lookups and pulls of two pairs of nodes in turns, one of them with it.

As `benchmarks.cpu.pulls`: a pull's fixed part is the fit over its lengths; a lookup asks the controller for a
prompt that nobody holds. Both ways are in one run, the order turned round every round.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.cpu import pulls

WAYS, ROUNDS, MISS = ("without", "with"), 200, 0  # MISS: a pull of no chunk
LONGEST = max(pulls.LENGTHS)
FIGURES = (
    ("a lookup of what nobody holds", "lookup_ms"),
    ("a pull of 256 tokens", "pull_ms"),
    (f"a pull of {LONGEST * pulls.CHUNK:,} tokens", "long_ms"),
    ("its fixed part, fitted", "t0_ms"),
)


def measure(module: str) -> dict[str, Any]:
    """Return by way a pull's fixed part, two pulls and a lookup in ms, and their ratios.

    ``module`` prints in the image what ``in_turns`` returns.
    """
    load = os.getloadavg()[0]
    seconds = pulls.in_container(module, "both", pulls.our_extra())
    found: dict[str, Any] = {way: _figures(seconds[way]) for way in WAYS}
    ratios = {what: found["with"][what] / found["without"][what] for what in found["with"]}
    return {**found, "ratio": ratios, "rounds": ROUNDS, "load_before": load, "load_after": os.getloadavg()[0]}


def section(title: str, of: str, module: str, found: dict[str, Any]) -> list[str]:
    """Return the lines of docs/benchmarks.md."""
    return [
        "",
        f"## {title}",
        "",
        f"Two pairs of nodes as above, one with {of} and one without, asked in turns in one run of",
        f"{found['rounds']} rounds (`{module}`); medians. Load average "
        f"{found['load_before']:.1f} before, {found['load_after']:.1f} after.",
        "",
        "| | without | with | ratio |",
        "|---|---|---|---|",
        *(
            f"| {name} | {found['without'][what]:.2f} ms | {found['with'][what]:.2f} ms "
            f"| {found['ratio'][what]:.3f} |"
            for name, what in FIGURES
            if what in found["ratio"]
        ),
    ]


def _figures(seconds: dict[str, list[float]]) -> dict[str, float]:
    medians = {int(chunks): statistics.median(values) for chunks, values in seconds.items()}
    lookup = medians.pop(MISS)
    return {
        "lookup_ms": lookup * 1000,
        "pull_ms": medians[1] * 1000,
        "long_ms": medians[LONGEST] * 1000,
        "t0_ms": pulls.fixed_ms(medians),
    }


# --- inside the container -----------------------------------------------------------------------------------


def prompts() -> dict[int, int]:
    """Return what both pairs hold, chunks by seed."""
    return {chunks: chunks for chunks in pulls.LENGTHS}


def in_turns(without: Any, having: Any) -> dict[str, dict[int, list[float]]]:
    """Return the seconds that two nodes took, by way and chunks."""
    found = {way: {chunks: list[float]() for chunks in (MISS, *pulls.LENGTHS)} for way in WAYS}
    order: Sequence[tuple[str, Any]] = tuple(zip(WAYS, (without, having), strict=True))
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
