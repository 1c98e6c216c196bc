"""What a pull over a link means for a model: how long the longest takes, what fits in the timeout."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvshare.cost.model import LANE_T0_S, LANES_T0_S, SHARE_OF_PERFTEST, Pull, expected_pull

# Several requests pull at once, and the timeout holds for each of them.
ROOM = 2.0
LMCACHE_DEFAULT_MS = 3000
STEP_MS = 500


@dataclass(frozen=True)
class Meaning:
    """One link and one model: bytes, seconds, whole chunks of tokens; ``break_even`` None: never."""

    token_bytes: int
    longest_tokens: int
    longest_s: float
    timeout_ms: int
    fits_tokens: int
    needed_ms: int
    advised_ms: int
    break_even: int | None


def pull_over(kv_bytes_per_token: int, perftest_bytes_per_s: float, latency_s: float, lanes: int) -> Pull:
    """Return the pull to expect over a link that ucx_perftest measured on so many connections."""
    t0_s = (LANES_T0_S if lanes > 1 else LANE_T0_S) + 2 * latency_s
    return expected_pull(kv_bytes_per_token, perftest_bytes_per_s * SHARE_OF_PERFTEST, t0_s)


def meaning(
    token_bytes: int,
    pull: Pull,
    break_even: int | None,
    longest_tokens: int,
    timeout_ms: int,
    chunk_size: int,
) -> Meaning:
    """Return what such pulls mean for prompts of up to ``longest_tokens`` under a timeout."""
    longest_s = pull.seconds(longest_tokens)
    return Meaning(
        token_bytes=token_bytes,
        longest_tokens=longest_tokens,
        longest_s=longest_s,
        timeout_ms=timeout_ms,
        fits_tokens=int(pull.tokens(timeout_ms / 1000)) // chunk_size * chunk_size,
        needed_ms=math.ceil(longest_s * 1000),
        advised_ms=advised_ms(longest_s),
        break_even=break_even,
    )


def advised_ms(longest_s: float) -> int:
    """Return the timeout for a longest pull: with room, in round figures, and no less than the default."""
    return max(LMCACHE_DEFAULT_MS, math.ceil(longest_s * ROOM * 1000 / STEP_MS) * STEP_MS)
