"""What `kvshare bench --calibrate` makes of a benchmark, and how decode's two arms then compare."""

from __future__ import annotations

from typing import Any

from kvshare.bench import calibrate
from kvshare.bench.results import Document
from kvshare.bench.spec import PEER, RECOMPUTE, WORTH_QUOTING

CALIBRATING = WORTH_QUOTING  # repetitions of a length, as `kvshare bench` makes them


def calibrated_by(document: Document) -> dict[str, Any]:
    """What `kvshare bench --calibrate` makes of a benchmark."""
    return {
        "threshold": calibrate.threshold(document).setting,
        "line": calibrate.line(document),
        "before": ratios(document),
    }


def ratios(document: Document) -> list[dict[str, Any]]:
    """Of each length: both arms' median milliseconds, their ratio and its interval, whether decode pulled."""
    found = []
    for result in document.points:
        ratio, peer = result.peer_over_recompute, result.arm(PEER)
        assert ratio is not None, f"{result.point.label}: one of the two arms has no figures"
        found.append(
            {
                "tokens": result.point.prompt_tokens,
                "peer_ms": result.ttft_ms(PEER),
                "recompute_ms": result.ttft_ms(RECOMPUTE),
                "ratio": ratio.value,
                "interval": (ratio.low, ratio.high),
                "repetitions": result.repetitions,
                "pulled": peer is not None and peer.sources.external_kv_transfer > 0,
            }
        )
    return found
