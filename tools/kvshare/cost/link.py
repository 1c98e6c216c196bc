"""What a link means for a model: how long a pull takes, what fits in the timeout, from where on it pays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kvshare.cost.plan import DTYPE_BYTES
from kvshare.doctor.evidence import Facts, Link, Model

# A pull's fixed part, and how much of the bare link's speed its bytes get. Llama-3.1-8B's dimensions on one
# H200, UCX over loopback TCP: 20 to 25 ms plus the bytes at 4.1 to 4.7 GB/s where the link carried 4.7.
PULL_OVERHEAD_S = 0.025
EFFICIENCY = 4.1 / 4.7
# Several requests pull at once, and the timeout holds for each of them.
ROOM = 2.0
LMCACHE_DEFAULT_MS, LMCACHE_CHUNK = 3000, 256
STEP_MS = 500
# Models whose config.json cannot be read before they are downloaded: layers, KV heads, head_dim, dtype.
KNOWN: Mapping[str, tuple[int, int, int, str]] = {
    "meta-llama/Meta-Llama-3.1-8B-Instruct": (32, 8, 128, "bfloat16"),
}


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


def token_bytes(model: Model, dtype: str) -> int | None:
    """Return the bytes of KV of one token over all layers, or None for a model that nothing is known of."""
    shape = (model.layers, model.kv_heads, model.head_dim, model.dtype)
    if None in shape[:3] and model.name in KNOWN:
        shape = KNOWN[model.name]
    layers, heads, width, own = shape
    if layers is None or heads is None or width is None:
        return None
    size = DTYPE_BYTES.get((own or "bfloat16") if dtype == "auto" else dtype, 2)
    return 2 * layers * heads * width * size


def pull_s(tokens: int, per_token: int, link: Link) -> float:
    """Return how long a pull of so many tokens takes on a measured link."""
    assert link.bytes_per_s is not None, "only a measured link says how long"
    return overhead_s(link) + tokens * per_token / (link.bytes_per_s * EFFICIENCY)


def overhead_s(link: Link) -> float:
    """Return the part of a pull that does not grow with its tokens."""
    return PULL_OVERHEAD_S + 2 * (link.latency_s or 0.0)


def meaning(link: Link, facts: Facts, prefill_tokens_per_s: float) -> Meaning | None:
    """Return what a measured link means on the peer that asks; None where the model's KV is unknown."""
    per_token = token_bytes(facts.model, facts.dtype)
    if per_token is None or not link.bytes_per_s:
        return None
    chunk = int(facts.lmcache.get("chunk_size", LMCACHE_CHUNK))
    longest_s = pull_s(facts.max_model_len, per_token, link)
    room_s = facts.lookup_timeout_ms / 1000 - overhead_s(link)
    fits = max(0, int(room_s * link.bytes_per_s * EFFICIENCY / per_token))
    return Meaning(
        token_bytes=per_token,
        longest_tokens=facts.max_model_len,
        longest_s=longest_s,
        timeout_ms=facts.lookup_timeout_ms,
        fits_tokens=fits // chunk * chunk,
        needed_ms=math.ceil(longest_s * 1000),
        advised_ms=advised_ms(longest_s),
        break_even=break_even(link, per_token, prefill_tokens_per_s, chunk),
    )


def advised_ms(longest_s: float) -> int:
    """Return the timeout for a longest pull: with room, in round figures, and no less than the default."""
    return max(LMCACHE_DEFAULT_MS, math.ceil(longest_s * ROOM * 1000 / STEP_MS) * STEP_MS)


def break_even(link: Link, per_token: int, tokens_per_s: float, chunk: int) -> int | None:
    """Return from how many tokens on, in whole chunks, a pull is sooner than to compute; None: never."""
    assert link.bytes_per_s is not None, "only a measured link has one"
    gain_s = 1 / tokens_per_s - per_token / (link.bytes_per_s * EFFICIENCY)
    return math.ceil(overhead_s(link) / gain_s / chunk) * chunk if gain_s > 0 else None
