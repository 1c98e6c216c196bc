"""What is kept of a `kvshare bench`: medians and spreads by point and arm, not every percentile."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kvshare.bench.results import Document


def summary(document: Document) -> dict[str, Any]:
    """What a document comes to, as docs tell it."""
    return {
        "verdict": document.verdict,
        "link_gb_per_s": document.link.gb_per_s,
        "link_how": document.link.how,
        "kv_bytes_per_token": document.model.kv_bytes_per_token,
        "repetitions": document.repetitions,
        "first_pull_ms": document.first_pull_ms,
        "break_even_tokens": document.cost and document.cost.break_even_tokens,
        "notes": document.notes,
        "points": [
            {
                **asdict(result.point),
                "repetitions": result.repetitions,
                "arms": {arm.arm: _figures(arm) for arm in result.arms if arm.ttft_ms is not None},
                "transfer": result.transfer and asdict(result.transfer),
                "stages": result.stages and asdict(result.stages),
                "notes": result.notes,
            }
            for result in document.points
        ],
    }


def _figures(arm: Any) -> dict[str, Any]:
    return {
        "ttft_ms": arm.ttft_ms.p50,
        "ttft_p99_ms": arm.ttft_ms.p99,
        "spread_ms": arm.ttft_ms.spread,
        "tpot_ms": arm.tpot_ms and arm.tpot_ms.p50,
        "request_throughput": arm.request_throughput,
        "output_throughput": arm.output_throughput,
    }
