"""What each measured link means for the model, and the LOOKUP_TIMEOUT_MS that it asks for."""

import math
from dataclasses import dataclass

from kvshare.config import threshold
from kvshare.contract import Facts
from kvshare.cost.model import FIRST_TOKEN_S, Prefill, Pull, break_even, first_worthwhile, pull_over
from kvshare.cost.plan import kv_bytes_per_token
from kvshare.doctor.evidence import Evidence, Link
from kvshare.errors import CouldNotCheckError

NAME = "LOOKUP_TIMEOUT_MS"
LMCACHE_CHUNK = 256  # tokens, where nothing else is set
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


def meanings(evidence: Evidence) -> dict[str, tuple[Link, Meaning]]:
    """Return what each measured link means for the model, by the name of the node that asks."""
    speed = evidence.prefill_speed
    found = {}
    for link in evidence.links:
        facts = evidence.seen.get(link.target)
        if link.bytes_per_s and facts is not None and speed is not None:
            meant = _meaning(link, link.bytes_per_s, facts, speed.tokens_per_s)
            if meant is not None:
                found[link.target] = (link, meant)
    return found


def _meaning(link: Link, bytes_per_s: float, facts: Facts, tokens_per_s: float) -> Meaning | None:
    """Return what a link means on the peer that asks; None where the model's KV or its length is unknown."""
    model, longest = facts.model, facts.max_model_len
    dtype = (model.dtype or "bfloat16") if facts.dtype == "auto" else facts.dtype
    size = kv_bytes_per_token(model.name, model.layers, model.kv_heads, model.head_dim, dtype)
    if size is None or longest is None:
        return None
    chunk = int(facts.lmcache.get("chunk_size", LMCACHE_CHUNK))
    pull = pull_over(size, bytes_per_s, link.latency_s or 0.0, link.lanes)
    longest_s = pull.seconds(longest)
    return Meaning(
        token_bytes=size,
        longest_tokens=longest,
        longest_s=longest_s,
        timeout_ms=facts.lookup_timeout_ms,
        fits_tokens=int(pull.tokens(facts.lookup_timeout_ms / 1000)) // chunk * chunk,
        needed_ms=math.ceil(longest_s * 1000),
        advised_ms=advised_ms(longest_s),
        break_even=_pays_from(pull, tokens_per_s, facts, chunk),
    )


def _pays_from(pull: Pull, tokens_per_s: float, facts: Facts, chunk: int) -> int | None:
    """Return from how many tokens on a pull pays: as it was calibrated, else as it is to be expected."""
    calibrated = threshold.of_server(facts.lmcache)
    if calibrated.is_set:
        return calibrated.tokens
    return first_worthwhile(break_even(pull, Prefill(FIRST_TOKEN_S, 1 / tokens_per_s, 0.0)), chunk, None)


def advised_ms(longest_s: float) -> int:
    """Return the timeout for a longest pull: with room, in round figures, and no less than the default."""
    return max(LMCACHE_DEFAULT_MS, math.ceil(longest_s * ROOM * 1000 / STEP_MS) * STEP_MS)


def derived_line(evidence: Evidence) -> str:
    """Return the line that the slowest measured link asks for; CouldNotCheckError if none was measured."""
    meant = meanings(evidence)
    if not meant:
        reasons = [link.error or link.not_tried for link in evidence.links if link.error or link.not_tried]
        why = "; ".join(dict.fromkeys(reasons)) or "how large the model's KV is cannot be told yet"
        raise CouldNotCheckError(f"{NAME} cannot be derived: {why}; .env is as it was.")
    link, slowest = max(meant.values(), key=lambda pair: pair[1].needed_ms)
    return (
        f"{NAME}={slowest.advised_ms}  # make doctor ARGS=--write, {evidence.started[:10]}: {link.source} to "
        f"{link.target} {link.words}; {slowest.longest_tokens} tokens take "
        f"{slowest.longest_s:.2f} s"
    )
