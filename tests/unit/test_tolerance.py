"""Whether an answer is right: what noise may do, and what it may not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshare.servers.readings import Position
from kvshare.verify.tolerance import (
    CEILING_FACTOR,
    FLOORS,
    NOISE_FACTOR,
    distance,
    first_divergence,
    floor_of,
    is_explained,
    make_limit,
)

LOGPROBS = st.floats(min_value=-30, max_value=0, allow_nan=False)
TOKENS = st.integers(min_value=3, max_value=20)


@st.composite
def positions(draw: st.DrawFn) -> Position:
    top = draw(st.dictionaries(TOKENS, LOGPROBS, min_size=1, max_size=6))
    ranked = tuple(sorted(top.items(), key=lambda pair: -pair[1]))
    return Position(ranked[0][0], ranked)


ANSWERS = st.lists(positions(), min_size=1, max_size=5).map(tuple)
Answer = tuple[Position, ...]


def position(*top: tuple[int, float]) -> Position:
    return Position(top[0][0], top)


# --- distance -----------------------------------------------------------------------------------------------


@given(ANSWERS)
def test_an_answer_is_no_distance_from_itself(answer: Answer) -> None:
    assert distance(answer, answer) == 0


@given(ANSWERS, ANSWERS)
def test_distance_is_symmetric_and_not_negative(a: Answer, b: Answer) -> None:
    assert distance(a, b) == distance(b, a) >= 0


@given(ANSWERS, st.floats(min_value=0, max_value=5), st.data())
def test_distance_finds_the_one_value_that_moved(answer: Answer, by: float, data: st.DataObject) -> None:
    where = data.draw(st.integers(0, len(answer) - 1))
    top = answer[where].top
    rank = data.draw(st.integers(0, len(top) - 1))
    moved = tuple((token, value + by if i == rank else value) for i, (token, value) in enumerate(top))
    other = (*answer[:where], replace(answer[where], top=moved), *answer[where + 1 :])
    assert distance(answer, other) == pytest.approx(by, abs=1e-9)


@given(ANSWERS, st.floats(min_value=1e-6, max_value=1))
def test_noise_on_every_value_is_never_exaggerated(answer: Answer, noise: float) -> None:
    noisy = tuple(
        Position(p.token, tuple((t, v + noise * (-1) ** i) for i, (t, v) in enumerate(p.top))) for p in answer
    )
    assert distance(answer, noisy) <= noise * (1 + 1e-9) + 1e-9


def test_a_token_that_only_one_run_lists_counts_with_its_least_difference() -> None:
    a, b = position((5, -0.1), (6, -2.0)), position((5, -0.1), (7, -3.0))
    assert distance((a,), (b,)) == pytest.approx(1.0)  # 6 is at most as likely as 7 in b: -2.0 against -3.0


def test_first_token_that_differs_still_counts_and_what_follows_does_not() -> None:
    same, a, b = position((5, -0.1)), position((6, -0.5), (7, -0.9)), position((7, -0.4), (6, -1.0))
    far = position((8, -9.0))
    assert distance((same, a, same), (same, b, far)) == pytest.approx(0.5)
    assert distance((same, a), (same, a)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_is_no_small_difference(bad: float) -> None:
    assert distance((position((5, -0.1)),), (position((5, bad)),)) == math.inf


def test_nothing_to_compare_is_no_agreement() -> None:
    assert distance((), ()) == math.inf
    assert distance((position((5, -0.1)),), ()) == math.inf
    assert distance((Position(5, ()),), (Position(5, ()),)) == math.inf


# --- limit --------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(FLOORS)), st.lists(st.floats(min_value=0, max_value=10), max_size=5))
def test_limit_lies_between_the_floor_and_its_ceiling_and_follows_the_worst_noise(
    dtype: str, noises: list[float]
) -> None:
    limit = make_limit(dtype, noises)
    floor = FLOORS[dtype]
    assert floor <= limit.value <= CEILING_FACTOR * floor
    if floor < NOISE_FACTOR * max(noises, default=0) < CEILING_FACTOR * floor:
        assert limit.value == pytest.approx(NOISE_FACTOR * max(noises))


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1), st.floats(min_value=0, max_value=1))
def test_more_noise_never_makes_a_stricter_limit(noises: list[float], more: float) -> None:
    assert make_limit("float32", [*noises, more]).value >= make_limit("float32", noises).value


def test_infinite_noise_does_not_let_everything_pass() -> None:
    assert make_limit("bfloat16", [math.inf]).value == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("dtype", "floor"),
    [
        ("float32", 1e-3),
        ("float", 1e-3),
        ("torch.float32", 1e-3),
        ("half", 0.1),
        ("bfloat16", 0.1),
        ("auto", 0.1),
        (None, 0.1),
        ("fp8_e4m3", 0.3),
        ("float8_e5m2", 0.3),
        ("something new", 0.1),
    ],
)
def test_floor_of_every_dtype_that_vllm_names(dtype: str | None, floor: float) -> None:
    assert floor_of(dtype) == floor


# What was measured: the worst honest run passes and the mildest corrupted pair fails, with room to spare.


@pytest.mark.parametrize(("dtype", "honest", "corrupted"), [("bfloat16", 0.05, 0.5), ("float32", 1e-5, 0.03)])
def test_limits_part_what_was_measured(dtype: str, honest: float, corrupted: float) -> None:
    assert honest < make_limit(dtype, [honest]).value < corrupted


# --- tokens -------------------------------------------------------------------------------------------------


@given(ANSWERS)
def test_an_answer_does_not_diverge_from_itself(answer: Answer) -> None:
    assert first_divergence(answer, answer) is None


def test_divergence_names_the_first_place_and_the_gap() -> None:
    same = position((5, -0.1))
    honest, other = position((6, -0.5), (7, -0.9)), position((7, -0.4), (6, -1.0))
    found = first_divergence((same, honest, honest), (same, other, same))
    assert found is not None
    assert (found.position, found.honest, found.other) == (1, 6, 7)
    assert found.gap == pytest.approx(0.4)


def test_a_token_that_the_honest_run_does_not_list_has_at_least_the_gap_to_its_last() -> None:
    found = first_divergence((position((6, -0.5), (7, -0.9)),), (position((8, -0.4)),))
    assert found is not None
    assert found.gap == pytest.approx(0.4)


@given(st.floats(min_value=0, max_value=1), st.floats(min_value=0, max_value=1))
def test_a_tie_within_the_noise_may_fall_either_way_and_no_more(gap: float, noise: float) -> None:
    limit = make_limit("float32", [noise])
    found = first_divergence((position((6, 0.0), (7, -gap)),), (position((7, 0.0), (6, -gap)),))
    assert found is not None
    assert is_explained(found, limit) == (gap <= 2 * limit.value)
