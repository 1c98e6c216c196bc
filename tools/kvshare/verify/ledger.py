"""The arithmetic of reuse: how many tokens of a prompt can come from a peer, and what they add up to."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from statistics import median

from kvshare.errors import KvshareError
from kvshare.verify.evidence import CONTROL, PEER, WARM_UP, Leg, Sources

FIRST_TOKEN_ID = 3  # below it lie the special tokens of every common vocabulary
SMALLEST_BLOCK = 16  # vLLM's smallest cache block in tokens
TAIL = 10  # tokens after the last whole chunk; shorter than a block, so that every leg computes just them


def reusable(prompt_tokens: int, chunk_size: int) -> int:
    """Return how many leading tokens of a prompt a peer can hand over: whole chunks only."""
    return prompt_tokens // chunk_size * chunk_size


def require_prompt_tokens(
    prompt_tokens: int, chunk_size: int, max_model_len: int | None, max_tokens: int
) -> None:
    """Raise KvshareError unless a prompt of that length is whole chunks plus a tail and fits the model."""
    if prompt_tokens <= chunk_size:
        raise KvshareError(
            f"a prompt of {prompt_tokens} tokens is shorter than one chunk of {chunk_size} and a tail, "
            f"nothing of it could be reused: set --prompt-tokens to {chunk_size + TAIL} or more."
        )
    if max_model_len is not None and prompt_tokens + max_tokens > max_model_len:
        longest = reusable(max_model_len - max_tokens - TAIL, chunk_size) + TAIL
        raise KvshareError(
            f"a prompt of {prompt_tokens} tokens and {max_tokens} to generate exceed "
            f"MAX_MODEL_LEN={max_model_len}: set --prompt-tokens to {longest} or less."
        )
    tail = prompt_tokens % chunk_size
    if not 0 < tail < SMALLEST_BLOCK:
        right = reusable(prompt_tokens, chunk_size) + TAIL
        raise KvshareError(
            f"a prompt of {prompt_tokens} tokens ends {tail} tokens after a chunk of {chunk_size}, and the "
            f"legs would split their work differently: set --prompt-tokens to {right}."
        )


def make_prompts(count: int, tokens: int, vocab: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Return ``count`` prompts of random token ids in [3, vocab), a function of the seed alone."""
    if vocab <= FIRST_TOKEN_ID + 1:
        raise KvshareError(f"--vocab {vocab} leaves no two token ids to choose from: set it to 259 or more.")
    generator = random.Random(seed)
    return tuple(
        tuple(generator.randrange(FIRST_TOKEN_ID, vocab) for _ in range(tokens)) for _ in range(count)
    )


def of(legs: Iterable[Leg], name: str) -> tuple[Leg, ...]:
    """Return the legs of one kind, the warm-up among them."""
    return tuple(leg for leg in legs if leg.leg == name)


def counted(legs: Iterable[Leg]) -> tuple[Leg, ...]:
    """Return the legs whose time counts: answered, and not the warm-up's."""
    return tuple(
        leg for leg in legs if leg.ttft_ms is not None and (leg.prompt != WARM_UP or leg.leg == CONTROL)
    )


def total_sources(legs: Iterable[Leg]) -> Sources:
    """Return the sum of the legs' prompt tokens by source."""
    return sum((leg.sources for leg in legs if leg.sources is not None), Sources())


def median_ttft_ms(legs: Sequence[Leg], name: str) -> float | None:
    """Return the median time to first token of one kind of leg, or None if none was timed."""
    times = [leg.ttft_ms for leg in counted(of(legs, name)) if leg.ttft_ms is not None]
    return median(times) if times else None


def off_balance(legs: Iterable[Leg]) -> tuple[Leg, ...]:
    """Return the legs whose sources do not add up to their prompt tokens."""
    return tuple(leg for leg in legs if leg.sources is None or leg.sources.total != leg.tokens)


def moved_nothing(legs: Iterable[Leg]) -> bool:
    """Return whether no control leg got a token from a peer or from a cache."""
    return all(leg.sources == Sources(local_compute=leg.tokens) for leg in of(legs, CONTROL))


def not_pulled(legs: Iterable[Leg], expected: int) -> tuple[Leg, ...]:
    """Return the peer legs that did not get exactly ``expected`` tokens from the peer."""
    return tuple(
        leg for leg in of(legs, PEER) if leg.sources is None or leg.sources.external_kv_transfer != expected
    )
