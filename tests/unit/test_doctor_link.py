"""What a link means for a model: figures that can be done by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshare.cost import link
from kvshare.doctor.evidence import Link, Model
from tests.unit.doctor_build import LLAMA, with_gpus

DEMO = Model("demo", True, 10, 5, 64, "float32")
FACTS = with_gpus().seen["decode"]


def of(bytes_per_s: float) -> Link:
    return Link("prefill", "decode", bytes_per_s, 0.0)


@pytest.mark.parametrize(
    ("model", "dtype", "expected"),
    [
        (Model(LLAMA, True, 32, 8, 128, "bfloat16"), "auto", 128 * 1024),
        (Model(LLAMA, False), "auto", 128 * 1024),
        (Model(LLAMA, True, 32, 8, 128, "bfloat16"), "float32", 256 * 1024),
        (DEMO, "float32", 2 * 10 * 5 * 64 * 4),
        (Model("unknown/model", False), "auto", None),
    ],
)
def test_bytes_of_a_token(model: Model, dtype: str, expected: int | None) -> None:
    assert link.token_bytes(model, dtype) == expected


def test_a_gigabyte_a_second_and_the_original_s_model() -> None:
    meaning = link.meaning(of(1e9 / link.EFFICIENCY), FACTS, prefill_tokens_per_s=1000)
    assert meaning is not None
    assert meaning.longest_s == pytest.approx(0.025 + 1600 * 131072 / 1e9)
    assert meaning.fits_tokens == int(2.975e9 / 131072) // 256 * 256
    assert meaning.break_even == 256  # 25 ms against 1 ms - 0.13 ms a token: 29 tokens, so one chunk
    assert meaning.advised_ms == 3000


@pytest.mark.parametrize(("longest_s", "expected"), [(0.1, 3000), (1.5, 3000), (1.6, 3500), (42.1, 84500)])
def test_the_timeout_has_room_and_is_never_below_the_default(longest_s: float, expected: int) -> None:
    assert link.advised_ms(longest_s) == expected


def test_a_pull_never_pays_where_computing_is_faster_than_sending() -> None:
    assert link.break_even(of(1e9), 131072, tokens_per_s=25_000, chunk=256) is None


@given(
    bytes_per_s=st.floats(1e6, 1e11),
    tokens_per_s=st.floats(1, 1e6),
    per_token=st.integers(1024, 1024 * 1024),
)
def test_from_the_break_even_on_a_pull_is_sooner(
    bytes_per_s: float, tokens_per_s: float, per_token: int
) -> None:
    tokens = link.break_even(of(bytes_per_s), per_token, tokens_per_s, 256)
    if tokens is not None:
        assert link.pull_s(tokens, per_token, of(bytes_per_s)) <= tokens / tokens_per_s * (1 + 1e-9)
        if tokens > 256:
            before = tokens - 256
            assert link.pull_s(before, per_token, of(bytes_per_s)) >= before / tokens_per_s * (1 - 1e-9)
