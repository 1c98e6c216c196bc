"""What a pull and a prefill cost: figures that can be done by hand, and what was measured on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshare.cost.fit import fit_prefill, fit_pull
from kvshare.cost.model import (
    COPY_BYTES_PER_S,
    LANE_T0_S,
    LANES_T0_S,
    SHARE_OF_PERFTEST,
    Prefill,
    Pull,
    break_even,
    pull_over,
    verdict,
)
from kvshare.cost.plan import kv_bytes_per_token
from kvshare.doctor.evidence import Link
from kvshare.doctor.meaning import advised_ms, meanings
from kvshare.errors import KvshareError
from tests.unit.doctor_build import LLAMA, with_gpus

TOKEN = 131072  # bytes of Llama-3.1-8B's KV of one token in bfloat16
DEMO = ("demo", 10, 5, 64)


@pytest.mark.parametrize(
    ("model", "dtype", "expected"),
    [
        ((LLAMA, 32, 8, 128), "bfloat16", TOKEN),
        ((LLAMA, None, None, None), "bfloat16", TOKEN),
        ((LLAMA, None, None, None), "fp8", TOKEN // 2),
        ((LLAMA, 32, 8, 128), "float32", 2 * TOKEN),
        (DEMO, "float32", 2 * 10 * 5 * 64 * 4),
        (("unknown/model", None, None, None), "auto", None),
    ],
)
def test_bytes_of_a_token(
    model: tuple[str, int | None, int | None, int | None],
    dtype: str,
    expected: int | None,
) -> None:
    assert kv_bytes_per_token(*model, dtype) == expected


# --- what is to be expected ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lanes", "perftest_gb_per_s", "t0_ms", "gb_per_s"),
    [(8, 24.41, 38, 12.02), (1, 5.89, 21, 3.55)],
)
def test_a_pull_is_expected_as_an_h200_was_calibrated(
    lanes: int, perftest_gb_per_s: float, t0_ms: float, gb_per_s: float
) -> None:
    """docs/gpu/nvidia-h200.md, the lines of P2P_MIN_TOKENS: within a tenth of what was fitted there."""
    expected = pull_over(TOKEN, perftest_gb_per_s * 1e9, 0.0, lanes)
    assert expected.t0_s * 1000 == pytest.approx(t0_ms, rel=0.1)
    assert expected.bytes_per_s == pytest.approx(gb_per_s * 1e9, rel=0.1)


def test_the_round_trip_adds_to_what_does_not_grow() -> None:
    assert pull_over(TOKEN, 1e9, 0.005, 1).t0_s == pytest.approx(LANE_T0_S + 0.010)


def test_a_gigabyte_a_second_and_the_original_s_model() -> None:
    link = Link("prefill", "decode", 1e9 / SHARE_OF_PERFTEST, 0.0, lanes=8)
    _, found = meanings(replace(with_gpus(), links=(link,)))["decode"]
    per_token = TOKEN * (1 / 1e9 + 1 / COPY_BYTES_PER_S)  # 0.135 ms
    assert found.longest_s == pytest.approx(LANES_T0_S + 1600 * per_token)
    assert found.needed_ms == 257
    assert found.fits_tokens == int((3 - LANES_T0_S) / per_token) // 256 * 256
    assert found.advised_ms == 3000
    assert found.token_bytes == TOKEN


@given(t0=st.floats(0, 1), speed=st.floats(1e6, 1e11), tokens=st.floats(0, 1e6))
def test_what_a_pull_brings_in_its_own_time_is_what_it_was_to_bring(
    t0: float, speed: float, tokens: float
) -> None:
    pull = Pull(t0, speed, TOKEN)
    assert pull.tokens(pull.seconds(tokens)) == pytest.approx(tokens, rel=1e-6, abs=1e-3)
    assert pull.tokens(t0 / 2) == 0


@pytest.mark.parametrize(("longest_s", "expected"), [(0.1, 3000), (1.5, 3000), (1.6, 3500), (42.1, 84500)])
def test_the_timeout_has_room_and_is_never_below_the_default(longest_s: float, expected: int) -> None:
    assert advised_ms(longest_s) == expected


# --- from where on it pays ----------------------------------------------------------------------------------


def test_a_pull_never_pays_where_computing_is_faster_than_sending() -> None:
    assert break_even(pull_over(TOKEN, 1e9, 0.0, 8), Prefill(0.0, 1 / 25_000, 0.0)) is None


SQUARES = st.just(0.0) | st.floats(1e-12, 1e-7)


@given(
    st.floats(0, 1),
    st.floats(1e6, 1e11),
    st.floats(1e-7, 1e-3),
    SQUARES,
    st.floats(0, 0.1),
)
def test_from_the_break_even_on_a_pull_is_faster(
    t0: float, speed: float, linear: float, square: float, constant: float
) -> None:
    pull, prefill = Pull(t0, speed, TOKEN), Prefill(constant, linear, square)
    tokens = break_even(pull, prefill)
    if tokens is None:
        assert all(pull.seconds(n) >= prefill.seconds(n) - 1e-9 for n in (1e6, 1e7))
    else:
        beyond = tokens * 1.01 + 1
        assert pull.seconds(beyond) <= prefill.seconds(beyond) + 1e-9
        if tokens > 1:
            before = tokens * 0.999
            assert pull.seconds(before) >= prefill.seconds(before) - 1e-6 * (1 + prefill.seconds(before))


@pytest.mark.parametrize(
    ("tokens", "longest", "sentence"),
    [
        (None, 1600, "not worth it here: recomputing is faster at any length"),
        (0.0, 1600, "worth it from 256 tokens"),
        (300.0, 1600, "worth it from 512 tokens"),
        (
            18000.0,
            8192,
            "not worth it here: a pull would pay from 18,176 tokens, and the model takes 8,192",
        ),
        (18000.0, None, "worth it from 18,176 tokens"),
    ],
)
def test_the_verdict(tokens: float | None, longest: int | None, sentence: str) -> None:
    assert verdict(tokens, 256, longest).startswith(sentence)


# --- fits ---------------------------------------------------------------------------------------------------


def test_fits_find_what_made_the_samples() -> None:
    lengths = (266, 522, 1034, 2058, 4106)
    pull = fit_pull([(n, 0.025 + TOKEN * n / 1.2e9) for n in lengths], TOKEN)
    assert pull.t0_s == pytest.approx(0.025)
    assert pull.bytes_per_s == pytest.approx(1.2e9)
    prefill = fit_prefill([(n, 0.004 + 3e-5 * n + 2e-9 * n**2) for n in lengths])
    assert (prefill.constant_s, prefill.linear_s, prefill.quadratic_s) == pytest.approx((0.004, 3e-5, 2e-9))


def test_fits_never_go_below_zero() -> None:
    pull = fit_pull([(256, 0.05), (1024, 0.04), (2048, 0.03)], TOKEN)
    assert pull.bytes_per_s is None
    assert pull.t0_s == pytest.approx(0.0377, abs=0.002)


def test_a_fit_needs_two_lengths() -> None:
    with pytest.raises(KvshareError, match="2 prompt lengths or more, and there is 1"):
        fit_pull([(256, 0.1), (256, 0.2)], TOKEN)


def test_the_table_of_one_h200_gives_its_own_break_even() -> None:
    """TTFT in ms of Llama-3.1-8B on one H200 over loopback TCP, tokens: cold, peer."""
    measured = {
        1024: (49.6, 68.5), 4096: (127.4, 161.0), 8192: (255.1, 275.1),
        16384: (553.4, 574.7), 32768: (1339.1, 1140.3),
    }  # fmt: skip
    pull = fit_pull([(n, peer / 1000) for n, (_, peer) in measured.items()], TOKEN)
    prefill = fit_prefill([(n, cold / 1000) for n, (cold, _) in measured.items()])
    tokens = break_even(pull, prefill)
    assert tokens is not None
    assert 13000 < tokens < 20000
