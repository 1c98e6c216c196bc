"""The client's side over real HTTP, against a stand-in for the stack that keeps the same books."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kvshare.config.keys import Keys
from kvshare.errors import KvshareError
from kvshare.servers import sharing, wait
from kvshare.servers.readings import Sources, Wire
from kvshare.verify import legs
from kvshare.verify.evidence import CHANGED, CONTROL, PEER, REFERENCE, SAME_SPLIT, Spec, Traffic
from kvshare.verify.ledger import of
from tests.unit.build import KV_BYTES
from tests.unit.fake_stack import FakeStack

Run = Callable[..., Traffic]


@pytest.fixture
def run(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("FLUSH_S", "ADMISSION_DEADLINE_S", "AFTER_A_MISS_S"):
        monkeypatch.setattr(legs, name, 0.05)
    monkeypatch.setattr(sharing, "FLUSH_S", 0.05)
    monkeypatch.setattr(wait, "POLL_S", 0.01)

    def run(api_key: str | None = None, narrate: legs.Narrate = lambda _: None, **changes: Any) -> Traffic:
        return legs.run(replace(spec, **changes), Keys(api_key), narrate)

    return run


def test_every_leg_is_sent_and_accounted_for(run: Run, stack: FakeStack) -> None:
    seen = run()
    order = [(leg.leg, leg.prompt) for leg in seen.legs]
    of_prompts = [(leg, n) for n in range(3) for leg in (REFERENCE, SAME_SPLIT, PEER)]
    assert order == [(CONTROL, 3), *of_prompts, (CHANGED, 1)]
    assert {leg.sources for leg in of(seen.legs, CHANGED)} == {Sources(522, 0, 0)}
    assert {leg.sources for leg in of(seen.legs, CONTROL)} == {Sources(522, 0, 0)}
    assert {leg.sources for leg in of(seen.legs, REFERENCE)} == {Sources(522, 0, 0)}
    assert {leg.sources for leg in of(seen.legs, SAME_SPLIT)} == {Sources(10, 512, 0)}
    assert {leg.sources for leg in of(seen.legs, PEER)} == {Sources(10, 0, 512)}
    assert [leg.request_id for leg in seen.legs] == stack.request_ids


def test_what_was_pulled_before_is_of_no_leg(
    run: Run, stack: FakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    told = stack.prefill.transfers
    stack.prefill.transfers -= 1  # counted, and exported a little later

    def export(_: object) -> None:
        stack.prefill.transfers = max(told, stack.prefill.transfers)

    monkeypatch.setattr(sharing, "time", SimpleNamespace(sleep=export))
    seen = run(seed=2, narrate=export)
    assert seen.owner_start is not None
    assert seen.owner_start == seen.owner_after_control


def test_servers_that_answered_nothing_are_not_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "time", SimpleNamespace(sleep=pytest.fail))
    run()


def test_a_gateway_that_skips_prefill_is_seen_in_both_ledgers(run: Run, spec: Spec) -> None:
    assert run().gateway is None
    seen = run(gateway=spec.decode, seed=2).gateway  # decode itself stands in
    assert seen is not None
    assert (seen.prefill, seen.decode) == (Sources(), Sources(522, 0, 0))
    assert seen.leg.output == seen.honest.output
    gone = run(gateway="http://127.0.0.1:1", seed=3).gateway
    assert gone is not None
    assert "connection refused" in str(gone.leg.error)
    assert (gone.prefill, gone.decode) == (None, None)


def test_times_end_at_the_first_chunk_with_a_token(run: Run) -> None:
    for leg in run().legs:
        assert leg.ttft_ms is not None
        assert leg.e2e_ms is not None
        assert 20 <= leg.ttft_ms <= leg.e2e_ms
        assert len(leg.output) == 16
        assert all(len(position.top) == 5 and position.token == position.top[0][0] for position in leg.output)


def test_admission_is_seen_in_the_key_count(run: Run) -> None:
    assert {(a.expected_keys, a.new_keys, a.how) for a in run().admissions} == {(2, 2, "key count")}


def test_admission_is_seen_in_the_messages_where_a_full_cache_keeps_the_count_flat(
    run: Run, stack: FakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvshare.servers.controller.QUIET_S", 0.05)
    monkeypatch.setattr(legs, "ADMISSION_DEADLINE_S", 5.0)
    stack.cache_full = True
    assert {(a.new_keys, a.how) for a in run().admissions} == {(0, "messages")}


def test_admission_that_never_comes_is_recorded_and_the_run_goes_on(run: Run, stack: FakeStack) -> None:
    stack.pull_loop_alive = False
    seen = run()
    assert {a.how for a in seen.admissions} == {""}
    assert {leg.sources for leg in of(seen.legs, PEER)} == {Sources(522, 0, 0)}
    assert seen.controller.pull[-1].pending


def test_counters_frame_the_control_and_the_run(run: Run) -> None:
    seen = run()
    assert seen.owner_start is not None
    assert seen.owner_after_control is not None
    assert seen.owner_end is not None
    assert seen.decode_end is not None
    assert (seen.owner_start.transfers, seen.owner_after_control.transfers, seen.owner_end.transfers) == (
        0,
        0,
        3,
    )
    assert seen.decode_end.hit_tokens == 3 * 512
    assert seen.wire == Wire(bytes=3 * 512 * KV_BYTES)
    assert seen.chunk_bytes == 256 * KV_BYTES


def test_a_nixl_that_tells_nothing_leaves_its_ledger_open(run: Run) -> None:
    seen = run(nixl="http://127.0.0.1:1")
    assert seen.wire is None
    assert len(of(seen.legs, PEER)) == 3


def test_controller_that_is_down_leaves_the_servers_legs(run: Run, stack: FakeStack) -> None:
    stack.controller_up = False
    seen = run()
    assert not seen.controller.answers
    assert seen.controller.error is not None
    assert "503" in seen.controller.error
    assert len(seen.legs) == 11
    assert seen.admissions == ()


def test_decode_that_is_down_leaves_prefills_legs(run: Run, stack: FakeStack) -> None:
    stack.decode.healthy = False
    seen = run()
    assert not seen.decode.healthy
    assert {leg.leg for leg in seen.legs} == {REFERENCE, SAME_SPLIT, CHANGED}


def test_prefill_that_is_down_leaves_the_control(run: Run, stack: FakeStack) -> None:
    stack.prefill.healthy = False
    seen = run()
    assert not seen.prefill.healthy
    assert {leg.leg for leg in seen.legs} == {CONTROL}


def test_a_failed_request_is_evidence_not_an_exception(run: Run, stack: FakeStack) -> None:
    stack.decode.fail_requests = True
    failed = of(run().legs, PEER)
    assert all(
        leg.error is not None and "500" in leg.error and "EngineCore died" in leg.error for leg in failed
    )


def test_nothing_listening_is_named(run: Run) -> None:
    seen = run(decode="http://127.0.0.1:9")
    assert seen.decode.error == "http://127.0.0.1:9/health does not answer: connection refused"


def test_api_key_is_sent(run: Run, stack: FakeStack) -> None:
    stack.api_key = "s3cret"
    refused = run()
    assert refused.prefill.error is not None
    assert "wants an API key" in refused.prefill.error
    assert len(run(api_key="s3cret").legs) == 11


def test_waits_for_health_within_the_deadline(run: Run, stack: FakeStack) -> None:
    assert run(wait_s=0.05).prefill.healthy
    stack.prefill.healthy = False
    assert not run(wait_s=0.05).prefill.healthy


def test_after_the_deadline_nothing_more_is_sent(run: Run) -> None:
    seen = run(deadline_s=0.0)
    assert all(leg.error is not None and "deadline" in leg.error for leg in seen.legs)


def test_prompt_beyond_the_model_is_refused(run: Run) -> None:
    with pytest.raises(KvshareError, match="exceed MAX_MODEL_LEN=1600"):
        run(prompt_tokens=1802)


def test_same_seed_again_is_no_cold_leg(run: Run) -> None:
    run()
    assert {leg.sources for leg in of(run().legs, REFERENCE)} == {Sources(10, 512, 0)}


def test_progress_names_every_leg(run: Run) -> None:
    told: list[str] = []
    run(narrate=told.append)
    for kind in (CONTROL, REFERENCE, SAME_SPLIT, PEER):
        assert any(sentence.startswith(kind) for sentence in told)
