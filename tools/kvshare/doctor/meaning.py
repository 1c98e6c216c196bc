"""What each measured link means for the model."""

from __future__ import annotations

from kvshare.config import threshold
from kvshare.contract import Facts
from kvshare.cost.link import Meaning, meaning, pull_over
from kvshare.cost.model import FIRST_TOKEN_S, Prefill, Pull, break_even, first_worthwhile
from kvshare.cost.plan import kv_bytes_per_token
from kvshare.doctor.evidence import Evidence, Link

LMCACHE_CHUNK = 256  # tokens, where nothing else is set


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
    """Return what a link means on the peer that asks; None where the model's KV is unknown."""
    model = facts.model
    dtype = (model.dtype or "bfloat16") if facts.dtype == "auto" else facts.dtype
    size = kv_bytes_per_token(model.name, model.layers, model.kv_heads, model.head_dim, dtype)
    if size is None:
        return None
    chunk = int(facts.lmcache.get("chunk_size", LMCACHE_CHUNK))
    pull = pull_over(size, bytes_per_s, link.latency_s or 0.0, link.lanes)
    pays_from = _pays_from(pull, tokens_per_s, facts, chunk)
    return meaning(size, pull, pays_from, facts.max_model_len, facts.lookup_timeout_ms, chunk)


def _pays_from(pull: Pull, tokens_per_s: float, facts: Facts, chunk: int) -> int | None:
    """Return from how many tokens on a pull pays: as it was calibrated, else as it is to be expected."""
    calibrated = threshold.of_server(facts.lmcache)
    if calibrated.is_set:
        return calibrated.tokens
    return first_worthwhile(break_even(pull, Prefill(FIRST_TOKEN_S, 1 / tokens_per_s, 0.0)), chunk, None)
