"""Whether a calibrated P2P_MIN_TOKENS keeps decode from being slower than recomputing, on any link.

make benchmarks ARGS="--part never-slower"
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from benchmarks.calibration import CALIBRATING, calibrated_by, ratios
from benchmarks.rig.links_and_nodes import stack
from benchmarks.tool import bench, run
from kvshare.bench.results import Document
from kvshare.config import threshold
from tests.rig import network
from tests.rig.network import DECODE

MBITS = (100, 300, 1000)
LENGTHS = "266,522,1034,1546"
JUDGING = 9  # repetitions of a length; CALIBRATING before
# The longest pull takes longer than the 3 s that a server waits by default; `make doctor` would say so.
SETTINGS = {"LOOKUP_TIMEOUT_MS": "15000"}


def measure_never_slower() -> dict[str, Any]:
    """On each link: calibrate, restart decode with the threshold, and compare its arms peer and recompute."""
    os.environ.update(SETTINGS)
    found: dict[str, Any] = {}
    with stack(1) as settings:
        for mbit in MBITS:
            network.limit(DECODE, mbit * 1e6 / 8)
            run("up", "decode", environment={**os.environ, **settings})
            document = _measure(CALIBRATING, settings)
            calibrated = calibrated_by(document)
            derived = {threshold.NAME: calibrated["threshold"]}
            run("up", "decode", environment={**os.environ, **settings, **derived})
            found[str(mbit)] = {**calibrated, "after": ratios(_measure(JUDGING, settings))}
    return found


def _measure(repetitions: int, settings: Mapping[str, str]) -> Document:
    options = ("--prompt-tokens", LENGTHS, "--arms", "cold,peer,recompute", "--output-tokens", "2")
    repeated = ("--repetitions", str(repetitions))
    return bench(*options, *repeated, environment={**os.environ, **settings})


def section(found: dict[str, Any]) -> list[str]:
    """Return the document's lines on the threshold."""
    rows = []
    for mbit, link in found.items():
        for before, after in zip(link["before"], link["after"], strict=True):
            low, high = after["interval"]
            cells = (
                f"{int(mbit):,} Mbit/s", link["threshold"], f"{after['tokens']:,}",
                f"{before['ratio']:.2f}",
                "made" if after["pulled"] else "declined",
                f"{after['peer_ms']:.0f}", f"{after['recompute_ms']:.0f}",
                f"{after['ratio']:.2f} ({low:.2f}–{high:.2f})",
            )  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return [
        "",
        "## Never slower, on any link",
        "",
        "The rig's cable limited by the kernel; `P2P_MIN_TOKENS` as `kvshare bench --calibrate` derives it",
        "from what is measured first, then decode restarted with it. Peer over recompute, medians of",
        f"{CALIBRATING} repetitions before and {JUDGING} after, there with the middle 95 % of 2,000",
        "bootstrap samples. Where the pull is declined both arms compute.",
        "",
        "| link | threshold | tokens | before | the pull | peer TTFT, ms | recompute TTFT, ms | after |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
