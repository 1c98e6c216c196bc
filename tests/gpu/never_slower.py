"""With the threshold that `kvshare bench --calibrate` derives, decode is never slower for having a peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvshare.bench import calibrate, run
from kvshare.bench.results import Document
from kvshare.bench.spec import COLD, PEER, RECOMPUTE
from kvshare.native import Native
from kvshare.stack import Stack
from tests.gpu.bench import bench

OUTPUT = 2  # tokens; the first one is what is judged
CALIBRATING, JUDGING = 5, 11  # repetitions of a length; to tell 3 % apart takes more of them
NEVER_SLOWER = 1.03
THRESHOLD = "LMCACHE_P2P_MIN_TOKENS"


def judge(
    native: Native, stack: Stack, lengths: tuple[int, ...], folder: Path, lanes: int | None
) -> tuple[dict[str, Any], bool]:
    """Calibrate, restart decode with the threshold, and compare its peer arm with its recompute arm.

    ``lanes`` limits the connections of a pull, so that the link is slower; None leaves them as they are.
    """
    narrow = {} if lanes is None else {"KVSHARE_LANES": str(lanes)}
    _serve_with(native, {**narrow, THRESHOLD: "0"})
    calibrating = _bench(native, stack, lengths, CALIBRATING, folder / "calibrating")
    threshold = calibrate.threshold(calibrating)
    _serve_with(native, {THRESHOLD: threshold.setting})
    judging = _bench(native, stack, lengths, JUDGING, folder / "judging")
    found = {
        "lanes": lanes,
        "line": calibrate.line(calibrating),
        "before": _ratios(calibrating),
        "after": _ratios(judging),
    }
    return found, all(point["ratio"] <= NEVER_SLOWER for point in found["after"])


def _serve_with(native: Native, settings: dict[str, str]) -> None:
    environment = native.processes["decode"].environment
    if any(environment.get(name) != value for name, value in settings.items()):
        native.restart("decode", settings)


def _bench(
    native: Native, stack: Stack, lengths: tuple[int, ...], repetitions: int, folder: Path
) -> Document:
    options = run.Options(
        arms=(COLD, PEER, RECOMPUTE),
        prompt_tokens=lengths,
        output_tokens=(OUTPUT,),
        repetitions=repetitions,
    )
    return bench(native, stack, options, folder)[0]


def _ratios(document: Document) -> list[dict[str, Any]]:
    """Of each length: median milliseconds of both arms, their ratio, and whether decode pulled."""
    found = []
    for point in document.points:
        peer, recompute = point.arm(PEER), point.arm(RECOMPUTE)
        assert peer is not None
        assert peer.ttft_ms is not None
        assert recompute is not None
        assert recompute.ttft_ms is not None
        found.append(
            {
                "tokens": point.point.prompt_tokens,
                "peer_ms": peer.ttft_ms.p50,
                "recompute_ms": recompute.ttft_ms.p50,
                "ratio": peer.ttft_ms.p50 / recompute.ttft_ms.p50,
                "repetitions": peer.repetitions,
                "pulled": peer.sources.external_kv_transfer > 0,
            }
        )
    return found
