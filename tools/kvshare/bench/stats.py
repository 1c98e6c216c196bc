"""Percentiles and spreads of samples, without numpy: the client image does without it."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

CURVE = tuple(range(0, 101, 5))  # percentiles that a distribution keeps for its plot
RESAMPLED, SEED = 2000, 1


@dataclass(frozen=True)
class Distribution:
    """A sample in figures, in the sample's own unit.

    Attributes:
        spread: the middle half's width (75th minus 25th percentile) of the repetitions' medians.
        curve: the percentiles 0, 5 … 100.
    """

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    spread: float
    curve: tuple[float, ...]


@dataclass(frozen=True)
class Ratio:
    """Of two samples' medians; in 95 of 100 samples drawn anew it lies between ``low`` and ``high``."""

    value: float
    low: float
    high: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile of an ordered, non-empty sample, linear between neighbours (numpy's default)."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def ratio_of_medians(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Return one non-empty sample's median over another's.

    The interval is Efron's percentile bootstrap: each sample is drawn anew 2,000 times, with a fixed seed.
    """
    draw = random.Random(SEED)

    def redrawn(sample: Sequence[float]) -> float:
        return median(draw.choices(sample, k=len(sample)))

    ratios = sorted(redrawn(above) / redrawn(below) for _ in range(RESAMPLED))
    return Ratio(median(above) / median(below), percentile(ratios, 2.5), percentile(ratios, 97.5))


def distribution(groups: Iterable[Sequence[float]]) -> Distribution | None:
    """Return the figures of a sample given by repetition, or None if it is empty."""
    kept = [sorted(group) for group in groups if group]
    if not kept:
        return None
    ordered = sorted(value for group in kept for value in group)
    medians = sorted(percentile(group, 50) for group in kept)
    return Distribution(
        count=len(ordered),
        mean=fmean(ordered),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        spread=percentile(medians, 75) - percentile(medians, 25),
        curve=tuple(percentile(ordered, percent) for percent in CURVE),
    )
