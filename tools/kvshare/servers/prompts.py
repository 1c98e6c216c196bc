"""Prompts of random tokens, as long as whole chunks, which a peer can hand over, and a short tail."""

import random

from kvshare.errors import KvshareError

DEFAULT_CHUNK_SIZE = 256  # LMCache's own, in tokens
FIRST_TOKEN_ID = 3  # below it lie the special tokens of every common vocabulary
SMALLEST_BLOCK = 16  # vLLM's smallest cache block in tokens
TAIL = 10  # tokens after the last whole chunk; shorter than a block, so that every leg computes just them

Prompt = tuple[int, ...]


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


def draw_prompt(draw: random.Random, tokens: int, vocab: int) -> Prompt:
    """Return that many random token ids in [3, vocab)."""
    return tuple(draw.randrange(FIRST_TOKEN_ID, vocab) for _ in range(tokens))


def quoting(prompt: Prompt, chunk: int, chunk_size: int, tail: int | None = None) -> Prompt:
    """Return the prompt with a tail that repeats tokens from the middle of its chunk number ``chunk``.

    A trained model goes on with what followed them there, so its answer hangs on that chunk. Without
    ``tail`` it is as long as what follows the last whole chunk.
    """
    end = reusable(len(prompt), chunk_size) if tail is None else len(prompt) - tail
    begin = chunk * chunk_size + chunk_size // 2
    return prompt[:end] + prompt[begin : begin + len(prompt) - end]


def with_other_chunk(prompt: Prompt, chunk: int, chunk_size: int, vocab: int, seed: int) -> Prompt:
    """Return the prompt with other tokens in its chunk number ``chunk``, and the same tail."""
    other = draw_prompt(random.Random(seed), chunk_size, vocab)
    return prompt[: chunk * chunk_size] + other + prompt[(chunk + 1) * chunk_size :]


def make_prompts(count: int, tokens: int, vocab: int, seed: int) -> tuple[Prompt, ...]:
    """Return ``count`` prompts of random token ids in [3, vocab), a function of the seed alone."""
    if vocab <= FIRST_TOKEN_ID + 1:
        raise KvshareError(f"--vocab {vocab} leaves no two token ids to choose from: set it to 259 or more.")
    draw = random.Random(seed)
    return tuple(draw_prompt(draw, tokens, vocab) for _ in range(count))
