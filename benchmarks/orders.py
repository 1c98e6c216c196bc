"""Decode's two arms, kept apart by which of them went first in a repetition."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from kvshare.bench import outputs
from kvshare.bench.spec import PEER, RECOMPUTE
from kvshare.bench.stats import percentile

FIGURES = {
    "ttft_ms": "TTFT, ms",
    "ttft_p99_ms": "TTFT p99, ms",
    "tpot_ms": "TPOT, ms",
    "request_throughput": "requests/s",
    "output_throughput": "output tokens/s",
}
Request = dict[str, Any]
Orders = dict[str, dict[str, dict[str, float]]]


def of_folder(folder: Path) -> Orders:
    """The figures of what a benchmark has written there."""
    return by_order(json.loads(line) for line in (folder / outputs.LINES).read_text().splitlines())


def by_order(requests: Iterable[Request]) -> Orders:
    """Each arm's FIGURES, by the arm that went first; the requests are in the order of the arms."""
    runs: dict[int, dict[str, list[Request]]] = defaultdict(lambda: defaultdict(list))
    for request in requests:
        if request["counted"] and request["arm"] in (PEER, RECOMPUTE):
            runs[request["repetition"]][request["arm"]].append(request)
    orders = {}
    for first in (PEER, RECOMPUTE):
        kept = [arms for arms in runs.values() if len(arms) == 2 and next(iter(arms)) == first]
        orders[first] = {arm: _figures([arms[arm] for arms in kept]) for arm in (PEER, RECOMPUTE)}
    return orders


def _figures(runs: list[list[Request]]) -> dict[str, float]:
    requests = [request for run in runs for request in run]
    times = sorted(request["ttft_ms"] for request in requests)
    return {
        "ttft_ms": median(times),
        "ttft_p99_ms": percentile(times, 99),
        "tpot_ms": median(request["tpot_ms"] for request in requests),
        "request_throughput": median(len(run) / _seconds(run) for run in runs),
        "output_throughput": median(sum(r["output_tokens"] for r in run) / _seconds(run) for run in runs),
    }


def _seconds(run: list[Request]) -> float:
    end = max(request["sent_s"] + request["e2e_ms"] / 1000 for request in run)
    return float(end - min(request["sent_s"] for request in run))
