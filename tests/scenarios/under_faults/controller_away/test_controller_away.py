"""The controller is killed, or comes last: servers go on serving, and share again by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvshare.servers.http import RequestFailedError
from tests.rig.network import DECODE, PREFILL
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import Stack
from tests.scenarios.under_faults.traffic import CHUNKS_OF_TOKENS, WAIT_S, Traffic, registered

HERE = Path(__file__).parent
AWAY_S, AWAY_LONG_S = 8, 60
BACK_WITHIN_S = 15

pytestmark = pytest.mark.timeout(900)


def seconds_until_synchronised(start: float, sharing: str) -> float:
    """Seconds from ``start`` until the controller knows both workers and all that they hold."""
    while time.monotonic() - start < 4 * BACK_WITHIN_S:
        try:
            if registered(sharing) == {PREFILL.address, DECODE.address}:
                return time.monotonic() - start
        except RequestFailedError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the workers did not synchronise")


def wait_for_the_controller(sharing: str) -> float:
    """The moment of its first answer."""
    while True:
        try:
            registered(sharing)
            return time.monotonic()
        except RequestFailedError:
            time.sleep(0.1)


def test_while_the_controller_is_away_servers_serve_and_afterwards_share(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    away_s = AWAY_LONG_S if long else AWAY_S
    before = traffic.know(6)
    with stack.survivors("prefill", "decode"):
        stack.kill("controller")
        gone = time.monotonic()
        with traffic.running((PREFILL, DECODE), before):
            time.sleep(away_s / 2)
            between = traffic.know(2)
            time.sleep(max(0.0, gone + away_s - time.monotonic()))
        stack.start("controller")
        back = seconds_until_synchronised(wait_for_the_controller(traffic.sharing), traffic.sharing)
        start = traffic.sources(DECODE)
        traffic.ask_all(DECODE, between, "stored in between")
        found = traffic.sources(DECODE) - start
        recovery = traffic.seconds_until_reuse(30) + back
    seen = record(
        figures.of(
            HERE, f"killed, {away_s} s", 1, traffic.sent, recovery, {"synchronised": f"after {back:.1f} s"}
        )
    )
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert (seen.longest_wait_s or 0) <= WAIT_S, traffic.slowest()
    assert back <= BACK_WITHIN_S
    assert found.external_kv_transfer == CHUNKS_OF_TOKENS * len(between)


def test_a_controller_that_starts_last_is_found(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    if not long:
        pytest.skip("restarts both servers: make test-faults")
    for service in ("decode", "prefill", "controller"):
        stack.kill(service)
    for service in ("prefill", "decode"):
        stack.start(service)
    for host in (PREFILL, DECODE):
        traffic.wait_until_up(host)
    pool = traffic.know(2)
    traffic.ask_all(DECODE, pool)
    stack.start("controller")
    back = seconds_until_synchronised(wait_for_the_controller(traffic.sharing), traffic.sharing)
    recovery = traffic.seconds_until_reuse(30) + back
    seen = record(
        figures.of(HERE, "started last", 1, traffic.sent, recovery, {"synchronised": f"after {back:.1f} s"})
    )
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert (seen.longest_wait_s or 0) <= WAIT_S, traffic.slowest()
    assert back <= BACK_WITHIN_S
