"""The benchmark's client side over real HTTP, against the stand-in for the stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from kvshare.bench import rules, session
from kvshare.bench.observed import Line, Observed
from kvshare.bench.spec import ARMS, COLD, LOCAL_LMCACHE, LOCAL_PREFIX, PEER, RECOMPUTE, BenchSpec, Point
from kvshare.config.keys import Keys
from kvshare.config.threshold import Threshold
from kvshare.errors import KvshareError
from kvshare.servers import server, sharing, wait
from kvshare.servers.readings import Sources
from tests.unit.fake_stack import CHUNK, FakeStack, serve

N, SHARED = 2 * CHUNK + 10, 2 * CHUNK
Run = Callable[..., Observed]


@pytest.fixture
def stack() -> FakeStack:
    return FakeStack()


@pytest.fixture
def spec(stack: FakeStack) -> Iterator[BenchSpec]:
    with serve(stack) as verify:
        yield BenchSpec(
            prefill=verify.prefill,
            decode=verify.decode,
            controller=verify.controller,
            prefill_instance=verify.prefill_instance,
            points=(Point(N, 4),),
            arms=ARMS,
            repetitions=2,
            chunk_size=CHUNK,
            seed=5,
        )


@pytest.fixture
def run(spec: BenchSpec, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(session, "ADMISSION_DEADLINE_S", 0.05)
    monkeypatch.setattr(server, "COUNTED_DEADLINE_S", 0.05)
    monkeypatch.setattr(sharing, "EXPORT_DEADLINE_S", 0.05)
    monkeypatch.setattr(wait, "POLL_S", 0.01)

    def run(api_key: str | None = None, **changes: object) -> Observed:
        seen = Observed()

        def emit(line: Line) -> None:
            nonlocal seen
            seen = seen.add(line)

        session.run(replace(spec, **changes), Keys(api_key), emit, lambda _: None)  # type: ignore[arg-type]
        return seen

    return run


def test_every_arm_gets_its_tokens_from_where_it_must(run: Run) -> None:
    for repetition in run().repetitions:
        assert repetition.discarded is None
        assert {r.arm: r.sources for r in repetition.arms} == {
            COLD: Sources(N, 0, 0),
            LOCAL_PREFIX: Sources(10, SHARED, 0),
            LOCAL_LMCACHE: Sources(10, 0, SHARED),
            PEER: Sources(10, 0, SHARED),
            RECOMPUTE: Sources(N, 0, 0),
        }
        assert all(r.fault is None for r in repetition.arms)


def test_a_declined_pull_is_no_fault_of_the_peer_arm(run: Run, stack: FakeStack) -> None:
    stack.decode.min_tokens = SHARED + 1
    seen = run(threshold=Threshold(SHARED + 1))
    assert seen.opening is not None
    assert seen.opening.first_pull is None
    for repetition in seen.repetitions:
        peer = repetition.arm(PEER)
        assert peer is not None
        assert peer.sources == Sources(N, 0, 0)
    assert stack.prefill.transfers == 0


def test_a_pull_that_should_have_been_declined_is_a_fault(run: Run) -> None:
    (fault, *_) = [r.fault for r in run(threshold=Threshold(None)).repetitions[0].arms if r.arm == PEER]
    assert fault == f"{SHARED} of 0 tokens came from LMCache"


def test_the_order_is_turned_round_every_other_time(run: Run) -> None:
    first, second = ([r.arm for r in repetition.arms] for repetition in run().repetitions)
    assert first == [COLD, LOCAL_PREFIX, LOCAL_LMCACHE, PEER, RECOMPUTE]
    assert second == [RECOMPUTE, COLD, PEER, LOCAL_LMCACHE, LOCAL_PREFIX]


def test_the_first_pull_is_shown_apart(run: Run, stack: FakeStack) -> None:
    seen = run()
    assert seen.opening is not None
    assert seen.opening.first_pull is not None
    assert seen.opening.first_pull.sources == Sources(10, 0, SHARED)
    assert stack.prefill.transfers == 1 + 2


def test_times_and_tokens_of_a_request(run: Run) -> None:
    (request,) = run().repetitions[0].arms[0].requests
    assert (request.prompt_tokens, request.output_tokens, len(request.gaps_ms)) == (N, 4, 3)
    assert request.ttft_ms is not None
    assert request.e2e_ms is not None
    assert request.ttft_ms >= 20
    assert request.e2e_ms == pytest.approx(request.ttft_ms + sum(request.gaps_ms), abs=0.01)
    assert request.tpot_ms == pytest.approx(sum(request.gaps_ms) / 3, abs=0.01)


def test_engine_times_are_of_this_arm_alone(run: Run) -> None:
    engine = run().repetitions[1].arms[2].engine
    assert engine is not None
    assert (engine.requests, engine.queue_s, engine.prefill_s) == pytest.approx((1, 0.004, 0.014))


def test_the_owners_counters_are_those_of_the_point(run: Run) -> None:
    (end,) = run().point_ends
    assert end.owner is not None
    assert (end.owner.transfers, end.owner.transfer_seconds) == pytest.approx((2, 0.1))


@pytest.mark.parametrize(("concurrency", "rate"), [(4, None), (1, 200.0)])
def test_load_sends_every_request_once(run: Run, concurrency: int, rate: float | None) -> None:
    point = Point(N, 4, concurrency, rate, requests=6)
    for arm in run(points=(point,)).repetitions[0].arms:
        assert len({request.request_id for request in arm.requests}) == 6
        assert all(request.error is None for request in arm.requests)
        assert arm.sources is not None
        assert arm.sources.total == 6 * N


def test_a_used_seeds_prompts_are_no_cold_ones(run: Run) -> None:
    run()
    again = run()
    *used, third, fourth = again.repetitions
    assert all("a warm cache inflates it" in str(repetition.discarded) for repetition in used)
    assert third.discarded is fourth.discarded is None, "the prompts after the seed's used ones are fresh"


def test_discarded_repetitions_are_not_repeated_for_ever(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "violation", lambda *_: "always")
    assert [r.discarded for r in run().repetitions] == ["always"] * 4


def test_keys_that_are_never_admitted_leave_the_peer_arm_without_figures(run: Run, stack: FakeStack) -> None:
    stack.pull_loop_alive = False
    for repetition in run(arms=(PEER,)).repetitions:
        peer = next(r for r in repetition.arms if r.arm == PEER)
        assert peer.fault == f"0 of {SHARED} tokens came from LMCache"


def test_a_server_that_goes_down_half_way_keeps_what_was_measured(run: Run, stack: FakeStack) -> None:
    stack.decode.dies_after = 4  # two to warm up, two of the first repetition
    seen = run()
    assert len(seen.repetitions) == 1
    assert seen.closing is not None
    assert seen.closing.stopped is not None
    assert "decode went down during the run" in seen.closing.stopped


def test_a_server_that_is_down_is_named(run: Run, stack: FakeStack) -> None:
    stack.prefill.healthy = False
    closing = run().closing
    assert closing is not None
    assert "prefill cannot be measured" in str(closing.stopped)


def test_servers_of_different_models_are_refused(run: Run, stack: FakeStack) -> None:
    stack.decode.model = "other"
    with pytest.raises(KvshareError, match="prefill serves m and decode serves other"):
        run()


def test_lengths_beyond_the_model_are_refused(run: Run) -> None:
    with pytest.raises(KvshareError, match="exceed MAX_MODEL_LEN=1600"):
        run(points=(Point(N, 4), Point(1802, 4)))


def test_only_what_is_asked_for_runs(run: Run, stack: FakeStack) -> None:
    stack.decode.healthy = False
    seen = run(arms=(COLD,))
    assert seen.opening is not None
    assert seen.opening.first_pull is None
    assert [r.arm for r in seen.repetitions[0].arms] == [COLD]


def test_the_api_key_is_sent(run: Run, stack: FakeStack) -> None:
    stack.api_key = "s3cret"
    assert all(r.discarded is None for r in run("s3cret").repetitions)
