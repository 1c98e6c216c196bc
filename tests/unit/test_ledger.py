"""The arithmetic of reuse."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kvshare.servers.readings import Sources
from kvshare.verify import ledger
from kvshare.verify.evidence import CONTROL, PEER, REFERENCE, Leg
from tests.unit.build import leg, legs

COUNTS = st.integers(min_value=0, max_value=10**9)
SOURCES = st.builds(Sources, COUNTS, COUNTS, COUNTS)


@given(SOURCES, SOURCES)
def test_what_was_there_before_does_not_count(before: Sources, request: Sources) -> None:
    assert (before + request) - before == request
    assert (before + request).total == before.total + request.total


@given(st.lists(st.tuples(SOURCES, st.integers(-3, 3)), max_size=6))
def test_a_leg_is_off_balance_exactly_if_its_sources_miss_its_tokens(
    found: list[tuple[Sources, int]],
) -> None:
    made = [replace(leg(PEER, i), sources=s, tokens=s.total + off) for i, (s, off) in enumerate(found)]
    assert [one.prompt for one in ledger.off_balance(made)] == [i for i, (_, off) in enumerate(found) if off]


def test_a_leg_without_sources_is_off_balance_and_not_pulled() -> None:
    blind = replace(leg(PEER, 1), sources=None)
    assert ledger.off_balance([blind]) == (blind,)
    assert ledger.not_pulled([blind], 1536) == (blind,)


@given(st.integers(0, 3000))
def test_pulled_means_exactly_the_expected_tokens(external: int) -> None:
    one = replace(leg(PEER, 1), sources=Sources(10, 0, external))
    assert (ledger.not_pulled([one], 1536) == ()) == (external == 1536)


@given(SOURCES)
def test_control_moves_nothing_only_if_all_was_computed(sources: Sources) -> None:
    one = replace(leg(CONTROL, 4), sources=sources, tokens=sources.total)
    assert ledger.moved_nothing([one]) == (sources.external_kv_transfer == sources.local_cache_hit == 0)


@given(st.lists(SOURCES, max_size=5))
def test_totals_are_sums(found: list[Sources]) -> None:
    made = [replace(leg(PEER, i), sources=sources) for i, sources in enumerate(found)]
    assert ledger.total_sources(made).total == sum(sources.total for sources in found)


def test_warm_up_and_failed_legs_count_in_no_median() -> None:
    failed = replace(leg(REFERENCE, 2), ttft_ms=None)
    made: tuple[Leg, ...] = (leg(REFERENCE, 0), leg(REFERENCE, 1), failed, leg(REFERENCE, 3))
    assert ledger.median_ttft_ms(made, REFERENCE) == (3510 + 3530) / 2
    assert ledger.median_ttft_ms(made, PEER) is None


def test_control_counts_whatever_its_number() -> None:
    assert ledger.median_ttft_ms([replace(leg(CONTROL, 4), prompt=0)], CONTROL) == 3640
    assert len(ledger.counted(ledger.of(legs(), CONTROL))) == 1
