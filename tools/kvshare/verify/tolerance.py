"""Whether two answers are the same answer, given the noise of floating-point arithmetic.

Two honest runs of one prompt differ a little wherever the work is split differently, and on a peaked
distribution corrupted KV leaves the text as it was. So distributions are compared: the largest difference
of log-probabilities, in nats, over the five most likely tokens of each generated one, up to and including
the first that differs; until there both saw the same text. A token that only one run lists counts with its
least possible difference. The worst prompt decides: a mean would hide one that is corrupted.

    noise = the largest distance between reference and same split, over the prompts of this run
    limit = max(floor, 5 × noise), but at most 3 × floor

| dtype | floor | seen in honest runs | seen with V corrupted |
|---|---|---|---|
| float32 | 0.001 | 0.00001 | 0.1 (V of one layer in ten) to 10 (all of it), demo model |
| float16, bfloat16, auto | 0.1 | up to 0.047 | 0.70 (the worst of six prompts, without packed-kv) |
| fp8 | 0.3 | | |

The demo model's figures are from `benchmarks/cpu/corruption.py`, those for bfloat16 from [gpu.md](gpu.md).
The cap keeps a server that disagrees with itself from vouching for anybody. Tokens may differ only where
the honest run gave the two at most twice the limit apart: each can move by the limit, towards the other.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvshare.servers.readings import Position

FLOORS = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.1, "fp8": 0.3}
NOISE_FACTOR = 5.0  # how far beyond the noise of this very run a difference must lie to count
CEILING_FACTOR = 3.0  # noise may raise a limit to this many floors; more would hide corruption

SENSITIVITY = (
    10.0  # how many limits one changed chunk must move an answer by, for a verification to say anything
)

_ALIASES = {"float": "float32", "half": "float16", "auto": "bfloat16"}


@dataclass(frozen=True)
class Limit:
    """The largest difference of log-probabilities, in nats, that passes for noise, and its origins."""

    value: float
    floor: float
    noise: float


@dataclass(frozen=True)
class Divergence:
    """The first place where two answers part ways, and by how much the honest run preferred its token."""

    position: int
    honest: int
    other: int
    gap: float


def floor_of(dtype: str | None) -> float:
    """Return the floor for a dtype as vLLM names it; an unknown one is taken for a 16-bit one."""
    name = (dtype or "auto").removeprefix("torch.")
    name = "fp8" if name.startswith(("fp8", "float8")) else _ALIASES.get(name, name)
    return FLOORS.get(name, FLOORS["bfloat16"])


def make_limit(dtype: str | None, noises: Iterable[float]) -> Limit:
    """Return the limit from the dtype and the distances between honest legs, reference and same split."""
    floor, noise = floor_of(dtype), max(noises, default=0.0)
    return Limit(min(max(floor, NOISE_FACTOR * noise), CEILING_FACTOR * floor), floor, noise)


def distance(a: Sequence[Position], b: Sequence[Position]) -> float:
    """Return the largest difference of log-probabilities in nats; infinite if there is nothing to compare."""
    pairs = list(zip(a, b, strict=False))[: _comparable(a, b)]
    return max((_position_distance(x, y) for x, y in pairs), default=math.inf)


def first_divergence(honest: Sequence[Position], other: Sequence[Position]) -> Divergence | None:
    """Return where ``other`` first names another token than ``honest``, or None if it never does.

    A token that the honest run does not list is at most as likely as the last one listed, so the gap to that
    one is a lower bound.
    """
    for index, (x, y) in enumerate(zip(honest, other, strict=False)):
        if x.token != y.token:
            known = dict(x.top)
            least = min(known.values(), default=-math.inf)
            gap = known.get(x.token, 0.0) - known.get(y.token, least)
            return Divergence(index, x.token, y.token, gap)
    return None


def is_explained(divergence: Divergence, limit: Limit) -> bool:
    """Return whether noise can swap the two tokens: each may move by the limit, the pair by twice that."""
    return divergence.gap <= 2 * limit.value


def _comparable(a: Sequence[Position], b: Sequence[Position]) -> int:
    divergence = first_divergence(a, b)
    return min(len(a), len(b)) if divergence is None else divergence.position + 1


def _position_distance(a: Position, b: Position) -> float:
    """Return the largest known difference over the tokens listed on either side.

    A token listed on one side only is at most as likely as the other side's last one, which bounds the
    difference from below.
    """
    known_a, known_b = dict(a.top), dict(b.top)
    values = (*known_a.values(), *known_b.values())
    if not known_a or not known_b or any(not math.isfinite(value) for value in values):
        return math.inf
    return max(
        *(abs(known_a[t] - known_b[t]) for t in known_a.keys() & known_b.keys()),
        *(known_a[t] - min(known_b.values()) for t in known_a.keys() - known_b.keys()),
        *(known_b[t] - min(known_a.values()) for t in known_b.keys() - known_a.keys()),
        0.0,
        0.0,
    )
