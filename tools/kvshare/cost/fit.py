"""What a pull and a prefill cost, fitted to times to first token that were measured."""

import math
from collections.abc import Callable, Sequence

from kvshare.cost.model import Prefill, Pull
from kvshare.errors import KvshareError

Samples = Sequence[tuple[float, float]]  # tokens, seconds
Basis = Sequence[Callable[[float], float]]

ONE, LINEAR, SQUARE = (lambda _: 1.0), (lambda n: n), (lambda n: n * n)
TURNS, SAME = 10_000, 1e-12


def fit_pull(samples: Samples, kv_bytes_per_token: float) -> Pull:
    """Fit ``t0 + bytes/B`` to (tokens, seconds) by least squares of the relative errors, neither below zero.

    KvshareError with fewer than two lengths, which fit any line.
    """
    _require_two_lengths(samples)
    t0, slope = _fit(samples, (ONE, LINEAR))
    return Pull(t0, kv_bytes_per_token / slope if slope > 0 else None, kv_bytes_per_token)


def fit_prefill(samples: Samples) -> Prefill:
    """Fit ``c + a·n + b·n²`` to (tokens, seconds) likewise; c takes four lengths or more, b three."""
    lengths = _require_two_lengths(samples)
    if lengths == 2:
        constant, linear = _fit(samples, (ONE, LINEAR))
        return Prefill(constant, linear, 0.0)
    if lengths == 3:
        return Prefill(0.0, *_fit(samples, (LINEAR, SQUARE)))
    return Prefill(*_fit(samples, (ONE, LINEAR, SQUARE)))


def _require_two_lengths(samples: Samples) -> int:
    found = len({tokens for tokens, _ in samples})
    if found < 2:
        raise KvshareError(f"a fit needs 2 prompt lengths or more, and there is {found}.")
    return found


def _fit(samples: Samples, basis: Basis) -> list[float]:
    """Return non-negative coefficients of least weighted squares, weight 1/y²: relative errors count alike.

    Gauss and Seidel's method on the normal equations, each function scaled to 1, each step kept from below
    zero, until nothing changes.
    """
    scale = [max(f(n) for n, _ in samples) for f in basis]
    rows = [[f(n) / s / y for f, s in zip(basis, scale, strict=True)] for n, y in samples]
    right = [math.fsum(column) for column in zip(*rows, strict=True)]
    table = [
        [math.fsum(row[i] * row[j] for row in rows) for j in range(len(basis))] for i in range(len(basis))
    ]
    found = [0.0] * len(basis)
    for _ in range(TURNS):
        before = tuple(found)
        for i, row in enumerate(table):
            missing = right[i] - math.fsum(a * x for a, x in zip(row, found, strict=True))
            found[i] = max(0.0, found[i] + missing / row[i])
        if all(math.isclose(x, y, rel_tol=SAME) for x, y in zip(found, before, strict=True)):
            break
    return [x / s for x, s in zip(found, scale, strict=True)]
