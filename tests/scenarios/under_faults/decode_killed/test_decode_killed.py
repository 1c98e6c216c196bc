"""Decode is killed while it pulls: prefill serves on and loses no memory, and decode shares again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig import network
from tests.rig.network import DECODE, PREFILL
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import CACHE_CHUNKS, Stack
from tests.scenarios.under_faults.traffic import WAIT_S, Sent, Traffic

HERE = Path(__file__).parent
BACK_WITHIN_S = 30
ROUNDS_LONG = 3
ELSEWHERE = "192.168.110.96"

pytestmark = pytest.mark.timeout(1200)


def test_prefill_serves_on_without_decode(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    recovery, rounds = 0.0, ROUNDS_LONG if long else 1
    survived: list[Sent] = []
    for _ in range(rounds):
        with stack.survivors("controller", "prefill"):
            held = traffic.know(3)
            assert stack.kill_during_a_pull("decode", traffic).error, "a killed server cannot have answered"
            traffic.sent.clear()  # what the dead server owes is no figure of the survivor's
            traffic.ask_all(PREFILL, held)
            if long:
                # What decode was pulling must not stay locked: the whole cache is written over.
                traffic.ask_all(PREFILL, traffic.know(CACHE_CHUNKS)[-3:])
            stack.start("decode")
            traffic.wait_until_up(DECODE)
            recovery = max(recovery, traffic.seconds_until_reuse(2 * BACK_WITHIN_S))
            survived += traffic.sent
    seen = record(figures.of(HERE, "and started again", rounds, survived, recovery))
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert (seen.longest_wait_s or 0) <= WAIT_S, traffic.slowest()
    assert recovery <= BACK_WITHIN_S


def test_decode_is_found_at_another_address(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    if not long:
        pytest.skip("restarts decode twice: make test-faults")
    network.add_address(DECODE, ELSEWHERE)
    with stack.survivors("controller", "prefill"):
        stack.kill("decode")
        started = stack.machines.up("decode", DECODE_HOST=ELSEWHERE)
        assert started.code == 0, started.err
        traffic.addresses[DECODE] = ELSEWHERE
        recovery = traffic.seconds_until_reuse(2 * BACK_WITHIN_S)
        # What decode holds must be found there as well.
        back = traffic.seconds_until_reuse(2 * BACK_WITHIN_S, owner=DECODE)
    stack.up()
    seen = record(figures.of(HERE, "and started elsewhere", 1, traffic.sent, max(recovery, back)))
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert max(recovery, back) <= BACK_WITHIN_S
