"""What a pull and a prefill cost as functions of the length, and from which length on a pull pays.

    pull(n)    = t0 + k·n / B            k bytes of KV a token, B bytes a second
    prefill(n) = c + a·n + b·n²          linear layers, and attention

Break-even n* is the smallest n with pull(n) < prefill(n). Both are times to the first token, which is what a
user waits for. `kvshare bench` fits them to what it measured (``fit``). `kvshare doctor` and `kvshare plan`,
which measure no pull, expect them by the constants below.
"""

import math
from dataclasses import dataclass

NEVER = 1e9  # tokens; a break-even beyond any model's context is none

# docs/gpu/nvidia-h200.md, Llama-3.1-8B over TCP: pulls calibrated as 38 ms + bytes/(12.0 GB/s)
# on 8 lanes and 21 ms + bytes/(3.6 GB/s) on one, where ucx_perftest had the link carry 24.4 and 5.9 GB/s.
LANES_T0_S, LANE_T0_S = 0.040, 0.021
# The transfer's share of what ucx_perftest measures, which sends the same 32 MiB over and over, from a cache.
SHARE_OF_PERFTEST = 0.7
# Nothing overlaps: what has arrived is then copied to the GPU, as after a hit in the server's own LMCache.
COPY_BYTES_PER_S = 30e9
FIRST_TOKEN_S = 0.017  # c: HTTP, tokenising and one step, of which t0 has as much


@dataclass(frozen=True)
class Pull:
    """Time of a pull: ``t0_s`` and then ``bytes_per_s``; infinite speed where more bytes took no longer."""

    t0_s: float
    bytes_per_s: float | None
    kv_bytes_per_token: float

    def seconds(self, tokens: float) -> float:
        """Return the seconds of a pull of that many tokens."""
        slope = 0.0 if self.bytes_per_s is None else self.kv_bytes_per_token / self.bytes_per_s
        return self.t0_s + slope * tokens

    def tokens(self, seconds: float) -> float:
        """Return how many tokens a pull brings in that time."""
        room = seconds - self.t0_s
        return max(0.0, room) * (self.bytes_per_s or math.inf) / self.kv_bytes_per_token


@dataclass(frozen=True)
class Prefill:
    """Time of a prefill in seconds: ``constant + linear·n + quadratic·n²``."""

    constant_s: float
    linear_s: float
    quadratic_s: float

    def seconds(self, tokens: float) -> float:
        """Return the seconds of a prefill of that many tokens."""
        return self.constant_s + self.linear_s * tokens + self.quadratic_s * tokens**2


def expected_pull(kv_bytes_per_token: float, transfer_bytes_per_s: float, t0_s: float = LANES_T0_S) -> Pull:
    """Return the pull to expect of a transfer at that speed, and the copy to the GPU after it."""
    return Pull(t0_s, 1 / (1 / transfer_bytes_per_s + 1 / COPY_BYTES_PER_S), kv_bytes_per_token)


def pull_over(kv_bytes_per_token: int, perftest_bytes_per_s: float, latency_s: float, lanes: int) -> Pull:
    """Return the pull to expect over a link that ucx_perftest measured on so many connections."""
    t0_s = (LANES_T0_S if lanes > 1 else LANE_T0_S) + 2 * latency_s
    return expected_pull(kv_bytes_per_token, perftest_bytes_per_s * SHARE_OF_PERFTEST, t0_s)


def break_even(pull: Pull, prefill: Prefill) -> float | None:
    """Return the length in tokens above which a pull is faster, 0 if it always is, None if it never is.

    It is the largest root of ``prefill(n) - pull(n)`` where that turns positive for good.
    """
    square = prefill.quadratic_s
    slope = prefill.linear_s - (pull.seconds(1) - pull.seconds(0))
    constant = prefill.constant_s - pull.t0_s
    if square <= 0:
        tokens = -constant / slope if slope > 0 else math.inf
    else:
        inside = slope**2 - 4 * square * constant
        tokens = (-slope + math.sqrt(inside)) / (2 * square) if inside > 0 else 0.0
    return max(0.0, tokens) if tokens < NEVER else None


def first_worthwhile(tokens: float | None, chunk_size: int, longest: int | None) -> int | None:
    """Return the break-even rounded up to whole chunks, or None if no prompt of ``longest`` tokens has it."""
    if tokens is None:
        return None
    first = max(chunk_size, math.ceil(tokens / chunk_size) * chunk_size)
    return None if longest is not None and first > longest else first


def verdict(tokens: float | None, chunk_size: int, longest: int | None) -> str:
    """Return whether reuse pays here, in one sentence; lengths count in whole chunks up to ``longest``."""
    first = first_worthwhile(tokens, chunk_size, None)
    if first is None:
        return "not worth it here: recomputing is faster at any length"
    if first_worthwhile(tokens, chunk_size, longest) is None:
        return (
            f"not worth it here: a pull would pay from {first:,} tokens, "
            f"and the model takes {longest:,} at most"
        )
    return f"worth it from {first:,} tokens"
