"""Prompts and their lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshare.errors import KvshareError
from kvshare.servers.prompts import make_prompts, require_prompt_tokens, reusable


@given(st.integers(1, 10**6), st.sampled_from([16, 64, 256, 512]))
def test_reusable_is_whole_chunks_and_leaves_less_than_one(tokens: int, chunk: int) -> None:
    whole = reusable(tokens, chunk)
    assert whole % chunk == 0
    assert 0 <= tokens - whole < chunk


@given(st.integers(0, 2**31))
def test_prompts_are_a_function_of_the_seed(seed: int) -> None:
    prompts = make_prompts(3, 50, 259, seed)
    assert prompts == make_prompts(3, 50, 259, seed)
    assert len(set(prompts)) == 3
    assert all(len(prompt) == 50 and all(3 <= token < 259 for token in prompt) for prompt in prompts)


def test_another_seed_makes_other_prompts() -> None:
    assert make_prompts(1, 50, 259, 1) != make_prompts(1, 50, 259, 2)


def test_vocabulary_without_a_choice_is_refused() -> None:
    with pytest.raises(KvshareError, match="--vocab 4"):
        make_prompts(1, 10, 4, 0)


@pytest.mark.parametrize("tokens", [257, 266, 1546, 1551])
def test_whole_chunks_and_a_short_tail_are_accepted(tokens: int) -> None:
    require_prompt_tokens(tokens, 256, 1600, 16)


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (1, "shorter than one chunk of 256 .* set --prompt-tokens to 266 or more"),
        (256, "shorter than one chunk"),
        (1536, "ends 0 tokens after a chunk of 256.* set --prompt-tokens to 1546"),
        (1552, "ends 16 tokens after a chunk of 256.* set --prompt-tokens to 1546"),
        (1802, "exceed MAX_MODEL_LEN=1600: set --prompt-tokens to 1546 or less"),
    ],
)
def test_other_lengths_are_refused_with_one_that_works(tokens: int, sentence: str) -> None:
    with pytest.raises(KvshareError, match=sentence) as refusal:
        require_prompt_tokens(tokens, 256, 1600, 16)
    assert refusal.value.exit_code == 2


@given(st.integers(1, 40000), st.sampled_from([64, 256]), st.integers(700, 20000))
def test_the_length_that_a_refusal_names_is_accepted(tokens: int, chunk: int, longest: int) -> None:
    try:
        require_prompt_tokens(tokens, chunk, longest, 16)
    except KvshareError as refusal:
        named = int(refusal.message.split("--prompt-tokens to ")[1].split()[0].rstrip("."))
        require_prompt_tokens(named, chunk, longest, 16)
