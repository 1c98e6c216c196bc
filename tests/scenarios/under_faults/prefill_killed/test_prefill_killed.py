"""Prefill is killed before, during and after a transfer: decode serves on, and shares again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig import network
from tests.rig.network import DECODE, PREFILL, Host
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import Stack
from tests.scenarios.under_faults.traffic import WAIT_S, Traffic, registered

HERE = Path(__file__).parent
ROUNDS_LONG = 3
BACK_WITHIN_S, REAPED_WITHIN_S = 30, 45
ELSEWHERE = Host("prefill", "192.168.110.14")

pytestmark = pytest.mark.timeout(1200)


def test_decode_serves_on_without_prefill(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    recovery = 0.0
    rounds = ROUNDS_LONG if long else 1
    for _ in range(rounds):
        after, *before = traffic.know(4)
        with stack.survivors("controller", "decode"):
            traffic.ask(DECODE, after, "before the kill")
            stack.kill_during_a_pull("prefill", traffic)
            traffic.ask_all(DECODE, (after, *before, after, *before))
            stack.start("prefill")
            traffic.wait_until_up(PREFILL)
            recovery = max(recovery, traffic.seconds_until_reuse(2 * BACK_WITHIN_S))
    seen = record(figures.of(HERE, "and started again", rounds, traffic.sent, recovery))
    survived(traffic, seen)


def survived(traffic: Traffic, seen: Figures) -> None:
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert (seen.longest_wait_s or 0) <= WAIT_S, traffic.slowest()
    assert (seen.recovery_s or 0) <= BACK_WITHIN_S


def test_a_dead_prefill_is_forgotten_and_found_at_another_address(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    if not long:
        pytest.skip("waits for the controller to miss its heartbeats: make test-faults")
    pool = traffic.know(3)
    network.add_address(PREFILL, ELSEWHERE.address)
    with stack.survivors("controller", "decode"):
        stack.kill("prefill")
        killed = time.monotonic()
        traffic.ask_all(DECODE, pool)
        while PREFILL.address in registered(traffic.sharing):
            assert time.monotonic() - killed < REAPED_WITHIN_S, "the dead worker is still registered"
            time.sleep(0.5)
        reaped = time.monotonic() - killed
        stack.up(HERE / "overlay.yaml", node="prefill")
        traffic.addresses[PREFILL] = ELSEWHERE.address
        recovery = traffic.seconds_until_reuse(2 * BACK_WITHIN_S)
    stack.up()
    seen = record(
        figures.of(
            HERE, "and started elsewhere", 1, traffic.sent, recovery, {"reaped": f"after {reaped:.0f} s"}
        )
    )
    survived(traffic, seen)
