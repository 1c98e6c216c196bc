"""What a pull and a prefill cost, fitted to times to first token that were measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

from kvshare.cost.model import Prefill, Pull
from kvshare.errors import KvshareError

Basis = Callable[[float], float]


def fit_pull(samples: Sequence[tuple[float, float]], kv_bytes_per_token: float) -> Pull:
    """Fit ``t0 + bytes/B`` to (tokens, seconds) by least squares of the relative errors, neither below zero.

    KvshareError with fewer than two lengths, which fit any line.
    """
    _require_lengths(samples, 2)
    t0, slope = _fit(samples, (_one, _linear))
    return Pull(t0, kv_bytes_per_token / slope if slope > 0 else None, kv_bytes_per_token)


def fit_prefill(samples: Sequence[tuple[float, float]]) -> Prefill:
    """Fit ``c + a·n + b·n²`` to (tokens, seconds) likewise; c takes four lengths or more, b three."""
    lengths = len({tokens for tokens, _ in samples})
    _require_lengths(samples, 2)
    if lengths >= 4:
        constant, linear, square = _fit(samples, (_one, _linear, _square))
        return Prefill(constant, linear, square)
    if lengths == 3:
        linear, square = _fit(samples, (_linear, _square))
        return Prefill(0.0, linear, square)
    constant, linear = _fit(samples, (_one, _linear))
    return Prefill(constant, linear, 0.0)


def _require_lengths(samples: Sequence[tuple[float, float]], least: int) -> None:
    found = len({tokens for tokens, _ in samples})
    if found < least:
        raise KvshareError(f"a fit needs {least} prompt lengths or more, and there is {found}.")


def _one(_: float) -> float:
    return 1.0


def _linear(n: float) -> float:
    return n


def _square(n: float) -> float:
    return n * n


def _fit(samples: Sequence[tuple[float, float]], basis: Sequence[Basis]) -> tuple[float, ...]:
    """Return non-negative coefficients of least weighted squares, weight 1/y²: relative errors count alike.

    The best solution over every subset of the basis whose coefficients are none of them negative; with two
    or three functions that is exact and short.
    """
    best, best_error = (0.0,) * len(basis), math.inf
    for size in range(1, len(basis) + 1):
        for chosen in combinations(range(len(basis)), size):
            solved = _solve(samples, [basis[i] for i in chosen])
            if solved is None or any(value < 0 for value in solved):
                continue
            full = [0.0] * len(basis)
            for place, value in zip(chosen, solved, strict=True):
                full[place] = value
            error = _error(samples, basis, full)
            if error < best_error - 1e-12:
                best, best_error = tuple(full), error
    return best


def _error(samples: Sequence[tuple[float, float]], basis: Sequence[Basis], values: Sequence[float]) -> float:
    return math.fsum(
        ((math.fsum(v * f(n) for v, f in zip(values, basis, strict=True)) - y) / y) ** 2 for n, y in samples
    )


def _solve(samples: Sequence[tuple[float, float]], basis: Sequence[Basis]) -> list[float] | None:
    """Solve the weighted normal equations by elimination, each function scaled to 1; None if singular."""
    scale = [max(abs(f(n)) for n, _ in samples) or 1.0 for f in basis]
    rows = [[f(n) / s / y for f, s in zip(basis, scale, strict=True)] for n, y in samples]
    size = len(basis)
    table = [
        [math.fsum(row[i] * row[j] for row in rows) for j in range(size)]
        + [math.fsum(row[i] for row in rows)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(table[r][i]))
        table[i], table[pivot] = table[pivot], table[i]
        if abs(table[i][i]) < 1e-12:
            return None
        for r in range(size):
            if r != i:
                factor = table[r][i] / table[i][i]
                table[r] = [x - factor * y for x, y in zip(table[r], table[i], strict=True)]
    return [table[i][size] / table[i][i] / scale[i] for i in range(size)]
