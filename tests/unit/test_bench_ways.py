"""`kvshare bench --through gateway`: the loads, the client's side over real HTTP, and when it is worth it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from kvshare.bench import rules, ways
from kvshare.bench.observed import ArmRun, Line, Observed, Opening, Repetition, Request
from kvshare.bench.results import Facts, Link, PointResult, RunFingerprint
from kvshare.bench.run import COMPLETE, closing_sentence, exit_code, make_document
from kvshare.bench.spec import (
    CONVERSATIONS,
    DOCUMENTS,
    GATEWAY,
    LOADS,
    ONE_SERVER,
    ROUND_ROBIN,
    TURNS,
    UNRELATED,
    WAYS,
    BenchSpec,
    Point,
)
from kvshare.bench.summary import point_results, verdict_of_ways
from kvshare.config.keys import Keys
from kvshare.errors import FAILED, PROVEN
from kvshare.servers import server, wait
from kvshare.servers.readings import Sources
from tests.unit.fake_stack import CHUNK, FakeStack, serve

N, SHARED = 2 * CHUNK + 10, 2 * CHUNK
POINTS = tuple(Point(N, 4, 4, requests=16, load=load) for load in LOADS)
FACTS = Facts("2026-11-27", COMPLETE, 61.0, 25600, {}, Link(None, ""), RunFingerprint("", "cpu", "tcp", ""))


@pytest.fixture
def stack() -> FakeStack:
    fake = FakeStack()
    fake.prefill.first_token_s = fake.decode.first_token_s = 0.002
    return fake


@pytest.fixture
def spec(stack: FakeStack) -> Iterator[BenchSpec]:
    with serve(stack) as verify:
        yield BenchSpec(
            prefill=verify.prefill,
            decode=verify.decode,
            controller=verify.controller,
            prefill_instance=verify.prefill_instance,
            points=POINTS,
            arms=WAYS,
            repetitions=2,
            chunk_size=CHUNK,
            seed=5,
            gateway=stack.gateway,
            servers=(verify.prefill, verify.decode),
        )


@pytest.fixture
def run(spec: BenchSpec, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Observed]:
    monkeypatch.setattr(server, "COUNTED_DEADLINE_S", 0.05)
    monkeypatch.setattr(wait, "POLL_S", 0.01)

    def run(**changes: object) -> Observed:
        lines: list[Line] = []
        ways.run(replace(spec, **changes), Keys(), lines.append, lambda _: None)  # type: ignore[arg-type]
        seen = Observed()
        for line in lines:
            seen = seen.add(line)
        return seen

    return run


def load_of(spec: BenchSpec, load: str) -> ways.Talks:
    return ways.talks(Point(N, 4, 4, requests=16, load=load), spec, random.Random(7))


def test_a_document_is_asked_about_by_eight(spec: BenchSpec) -> None:
    prompts = [prompt for (prompt,) in load_of(spec, DOCUMENTS)]
    documents = [prompt[:SHARED] for prompt in prompts]
    assert {documents.count(one) for one in documents} == {TURNS}
    assert len(set(prompts)) == 16
    assert {len(prompt) for prompt in prompts} == {N}


def test_each_turn_of_a_conversation_goes_on_from_the_one_before(spec: BenchSpec) -> None:
    for turns in load_of(spec, CONVERSATIONS):
        assert [len(prompt) for prompt in turns] == [N * turn // TURNS for turn in range(1, TURNS + 1)]
        for before, after in pairwise(turns):
            assert after[: len(before)] == before


def test_unrelated_prompts_have_not_even_a_beginning_in_common(spec: BenchSpec) -> None:
    assert len({prompt[:4] for (prompt,) in load_of(spec, UNRELATED)}) == 16


def test_only_what_went_through_the_gateway_is_shared(run: Callable[..., Observed]) -> None:
    (repetition, *_) = run(points=(POINTS[2],)).repetitions
    assert {one.arm: one.sources for one in repetition.arms} == {
        GATEWAY: Sources(16 * (N + N - SHARED), 0, 16 * SHARED),  # prefill computed it before decode took it
        ROUND_ROBIN: Sources(16 * N, 0, 0),
        ONE_SERVER: Sources(16 * N, 0, 0),
    }
    assert [one.fault for one in repetition.arms] == [None] * 3
    assert repetition.discarded is None


def test_round_robin_takes_every_server_and_one_server_takes_one(
    run: Callable[..., Observed], stack: FakeStack
) -> None:
    run(points=(POINTS[2],), repetitions=1, arms=(ROUND_ROBIN,))
    assert stack.prefill.answered == stack.decode.answered == 1 + 8  # one each to warm up
    assert not stack.known, "what it computed was kept for others"
    run(points=(POINTS[2],), repetitions=1, arms=(ONE_SERVER,))
    assert stack.decode.answered == 1 + 8


def test_the_order_is_turned_round_every_other_time(run: Callable[..., Observed]) -> None:
    first, second = ([one.arm for one in r.arms] for r in run(points=(POINTS[0],)).repetitions)
    assert first == list(WAYS)
    assert second == list(reversed(WAYS))


def test_turns_of_a_conversation_are_never_in_flight_together(run: Callable[..., Observed]) -> None:
    for one in run(points=(POINTS[1],), repetitions=1).repetitions[0].arms:
        assert len(one.requests) == 16
        for turns in (one.requests[:TURNS], one.requests[TURNS:]):
            for before, after in pairwise(turns):
                assert before.e2e_ms is not None
                assert after.sent_s >= before.sent_s + before.e2e_ms / 1000


def test_a_control_that_shared_and_unrelated_prompts_out_of_a_warm_cache_are_discarded() -> None:
    shared = ArmRun(ROUND_ROBIN, (), 1.0, Sources(10, 0, 512))
    assert "round-robin got 512 tokens" in str(rules.way_violation([shared], DOCUMENTS))
    assert rules.way_violation([replace(shared, arm=GATEWAY)], DOCUMENTS) is None
    warm = ArmRun(ONE_SERVER, (), 1.0, Sources(90, 10, 0))
    assert "10 % of unrelated prompts" in str(rules.way_violation([warm], UNRELATED))
    assert rules.way_violation([warm], DOCUMENTS) is None


def test_a_way_does_not_count_where_requests_failed_or_others_sent_some() -> None:
    answered = Request("a", 0.0, prompt_tokens=100)
    counted = ArmRun(ROUND_ROBIN, (answered,), 1.0, Sources(100, 0, 0))
    assert rules.way_fault(counted) is None
    assert "others use it too" in str(rules.way_fault(replace(counted, sources=Sources(101, 0, 0))))
    assert rules.way_fault(replace(counted, arm=GATEWAY, sources=Sources(100, 0, 100))) is None
    assert "others use it too" in str(
        rules.way_fault(replace(counted, arm=GATEWAY, sources=Sources(101, 0, 100)))
    )
    failed = replace(counted, requests=(answered, replace(answered, error="503")))
    assert "1 of 2 requests failed: 503" in str(rules.way_fault(failed))


def test_a_server_that_goes_down_ends_it_with_a_sentence(
    run: Callable[..., Observed], stack: FakeStack
) -> None:
    stack.decode.dies_after = 4
    closing = run().closing
    assert closing is not None
    assert "went down during the run" in str(closing.stopped)


def seen(spec: BenchSpec, slower: float = 1.0, **ttft_ms: float) -> Observed:
    """Five repetitions of unrelated prompts, with these times to first token, in ms, by way.

    ``slower``: how many times the others' wall time the gateway's is.
    """

    def made(way: str, repetition: int) -> ArmRun:
        ttft = ttft_ms[way] * (1 + 0.01 * repetition)
        request = Request(f"{way}-{repetition}", 0.0, N, 4, ttft, ttft + 30, (10.0, 10.0, 10.0))
        moved = SHARED if way == "gateway" else 0
        wall_s = slower if way == GATEWAY else 1.0
        return ArmRun(way, (request,), wall_s, Sources(N - moved, 0, moved))

    repetitions = tuple(
        Repetition(0, n, tuple(made(way, n) for way in WAYS if way in ttft_ms)) for n in range(5)
    )
    return Observed(Opening("m", 1600, spec.points), repetitions)


def results(spec: BenchSpec, slower: float = 1.0, **ttft_ms: float) -> tuple[PointResult, ...]:
    return point_results(seen(spec, slower, **ttft_ms), spec, FACTS)


def test_worth_it_is_said_only_where_every_other_way_is_beaten(spec: BenchSpec) -> None:
    spec = replace(spec, points=(POINTS[2],))
    sooner = results(spec, **{GATEWAY: 50, ROUND_ROBIN: 100, ONE_SERVER: 200})
    assert verdict_of_ways(sooner) == "worth it for unrelated; loses nowhere"
    later = results(spec, **{GATEWAY: 150, ROUND_ROBIN: 100, ONE_SERVER: 200})
    lost = "unrelated (TTFT p50, TTFT p99 against round-robin)"
    assert verdict_of_ways(later) == f"not worth it for any of these loads; loses on {lost}"
    same = results(spec, **{GATEWAY: 100, ROUND_ROBIN: 100, ONE_SERVER: 100})
    assert verdict_of_ways(same) == "not worth it for any of these loads; loses nowhere"
    half = results(spec, **{GATEWAY: 100, ROUND_ROBIN: 100, ONE_SERVER: 200})
    assert verdict_of_ways(half) == "not worth it for any of these loads; loses nowhere"
    assert verdict_of_ways(()).startswith("no verdict")


def test_few_repetitions_are_not_to_be_quoted(spec: BenchSpec) -> None:
    (five,) = results(replace(spec, points=(POINTS[2],)), **{GATEWAY: 50, ROUND_ROBIN: 100, ONE_SERVER: 200})
    assert "chance" not in verdict_of_ways([five])
    assert verdict_of_ways([replace(five, repetitions=4)]).endswith(
        "with fewer than 5 repetitions it may be chance"
    )


def test_sooner_answers_are_not_worth_fewer_of_them_and_more_are_worth_it(spec: BenchSpec) -> None:
    spec = replace(spec, points=(POINTS[2],))
    fewer = results(spec, 1.25, **{GATEWAY: 50, ROUND_ROBIN: 100, ONE_SERVER: 200})
    lost = "unrelated (req/s against round-robin), unrelated (req/s against one-server)"
    assert verdict_of_ways(fewer) == f"not worth it for any of these loads; loses on {lost}"
    more = results(spec, 0.8, **{GATEWAY: 100, ROUND_ROBIN: 100, ONE_SERVER: 100})
    assert verdict_of_ways(more) == "worth it for unrelated; loses nowhere"


def test_the_ratios_are_the_gateways_over_the_others(spec: BenchSpec) -> None:
    (result,) = results(
        replace(spec, points=(POINTS[2],)), **{GATEWAY: 50, ROUND_ROBIN: 100, ONE_SERVER: 200}
    )
    ratios = {one.way: one.ttft_p50.value for one in result.against}
    assert ratios == pytest.approx({ROUND_ROBIN: 0.5, ONE_SERVER: 0.25})
    assert [(one.tbt_p99.value, one.requests.value) for one in result.against if one.tbt_p99] == [(1, 1)] * 2


def test_nothing_that_moved_through_the_gateway_is_a_failure(spec: BenchSpec) -> None:
    spec = replace(spec, points=(POINTS[2],))
    moved = seen(spec, **dict.fromkeys(WAYS, 100.0))
    still = replace(
        moved,
        repetitions=tuple(
            replace(r, arms=tuple(replace(a, sources=Sources(N, 0, 0)) for a in r.arms))
            for r in moved.repetitions
        ),
    )
    assert exit_code(make_document(moved, spec, FACTS), spec, False) == PROVEN
    document = make_document(still, spec, FACTS)
    assert exit_code(document, spec, False) == FAILED
    assert "no byte moved through the gateway" in str(closing_sentence(document, FAILED))
