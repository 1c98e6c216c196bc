"""With the threshold that `kvshare bench --calibrate` derives, decode is never slower for having a peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.calibration import CALIBRATING, calibrated_by, ratios
from benchmarks.gpu.bench import bench
from kvshare.bench import run
from kvshare.bench.results import Document
from kvshare.bench.spec import COLD, PEER, RECOMPUTE
from kvshare.site.native import Native

OUTPUT = 2  # tokens; the first one is what is judged
# To tell 3 % apart takes more: of 25 ms a single time to first token is off by several milliseconds.
JUDGING = {2500: 41, 40_000: 9}  # up to so many tokens
NEVER_SLOWER = 1.03
THRESHOLD = "LMCACHE_P2P_MIN_TOKENS"


def judge(
    native: Native, calibrated: dict[str, Any], lengths: tuple[int, ...], folder: Path
) -> tuple[dict[str, Any], bool]:
    """Restart decode with the threshold, and compare its peer arm with its recompute arm."""
    _serve_with(native, {THRESHOLD: calibrated["threshold"]})
    judged: list[dict[str, Any]] = []
    for longest, repetitions in JUDGING.items():
        if part := tuple(tokens for tokens in lengths[len(judged) :] if tokens <= longest):
            judged += ratios(_bench(native, part, repetitions, folder / str(longest)))
    found = {**calibrated, "after": judged}
    return found, all(point["ratio"] <= NEVER_SLOWER for point in judged)


def calibrate_on(native: Native, lanes: int, lengths: tuple[int, ...], folder: Path) -> dict[str, Any]:
    """Restart decode with so many connections to its peer, and calibrate: fewer are a slower link."""
    _serve_with(native, {"KVSHARE_LANES": str(lanes), THRESHOLD: "0"})
    return {"lanes": lanes, **calibrated_by(_bench(native, lengths, CALIBRATING, folder))}


def _serve_with(native: Native, settings: dict[str, str]) -> None:
    environment = native.processes["decode"].environment
    if any(environment.get(name) != value for name, value in settings.items()):
        native.restart("decode", settings)


def _bench(native: Native, lengths: tuple[int, ...], repetitions: int, folder: Path) -> Document:
    options = run.Options(
        arms=(COLD, PEER, RECOMPUTE),
        prompt_tokens=lengths,
        output_tokens=(OUTPUT,),
        repetitions=repetitions,
    )
    return bench(native, options, folder)
