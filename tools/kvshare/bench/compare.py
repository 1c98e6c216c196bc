"""Two benchmarks against each other: ratios, and whether a difference is more than the runs' own spread."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from kvshare.bench.results import Document
from kvshare.bench.spec import Point
from kvshare.bench.stats import Distribution
from kvshare.errors import KvshareError

METRICS = ("ttft_ms", "tpot_ms", "tbt_ms", "e2e_ms")


@dataclass(frozen=True)
class Difference:
    """One figure of both runs; medians and spreads in ms, ``ratio`` is second over first."""

    point: Point
    arm: str
    metric: str
    first: float
    second: float
    spread: float

    @property
    def ratio(self) -> float:
        """How many times the first run's figure the second's is."""
        return self.second / self.first if self.first else float("inf")

    @property
    def exceeds_spread(self) -> bool:
        """Whether the medians differ by more than the wider of both runs' spreads over repetitions."""
        return abs(self.second - self.first) > self.spread


def compare(first: Document, second: Document) -> tuple[Difference, ...]:
    """Return every figure that both runs have; KvshareError if there is none."""
    found = tuple(_differences(first, second))
    if not found:
        raise KvshareError("the two benchmarks have no point and arm in common, there is nothing to compare.")
    return found


def warnings(
    first: Document, second: Document, names: tuple[str, str] = ("the first run", "the second run")
) -> tuple[str, ...]:
    """Return in what the runs differ besides their figures, in sentences."""
    told = []
    if first.model.name != second.model.name:
        told.append(f"the models differ: {first.model.name} and {second.model.name}")
    if first.fingerprint.configuration_hash != second.fingerprint.configuration_hash:
        told.append("the configurations differ (fingerprint.configuration_hash)")
    for name, document in zip(names, (first, second), strict=True):
        if document.ended != "complete":
            told.append(f"{name} is not complete: {document.ended}")
    return tuple(told)


def _differences(first: Document, second: Document) -> Iterator[Difference]:
    others = {(_key(r.point), arm.arm): arm for r in second.points for arm in r.arms}
    ours = ((r.point, arm) for r in first.points for arm in r.arms)
    for (point, arm), metric in product(ours, METRICS):
        a: Distribution | None = getattr(arm, metric)
        b: Distribution | None = getattr(others.get((_key(point), arm.arm)), metric, None)
        if a is not None and b is not None:
            yield Difference(point, arm.arm, metric, a.p50, b.p50, max(a.spread, b.spread))


def _key(point: Point) -> Point:
    return replace(point, requests=1)  # more of them make the same figures surer
