"""Prefill's cable is cut for seconds, or for a minute: decode serves on, and shares again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig import network
from tests.rig.network import DECODE, PREFILL
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import HOST_OF, Stack
from tests.scenarios.under_faults.traffic import WAIT_S, Traffic

HERE = Path(__file__).parent
BACK_WITHIN_S = 30

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("seconds", [5, 60])
def test_decode_serves_on_behind_a_cut_cable(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool, seconds: int
) -> None:
    if seconds > 5 and not long:
        pytest.skip("a minute of silence: make test-faults")
    pool = traffic.know(8 if seconds == 5 else 40)
    with stack.survivors(*HOST_OF):
        traffic.ask(DECODE, pool[0])
        network.partition(PREFILL)
        with traffic.running([DECODE], pool):
            time.sleep(seconds)
        network.heal(PREFILL)
        recovery = traffic.seconds_until_reuse(2 * BACK_WITHIN_S)
        traffic.ask_all(DECODE, pool)
    seen = record(figures.of(HERE, f"{seconds} s", 1, traffic.sent, recovery))
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert (seen.longest_wait_s or 0) <= WAIT_S, traffic.slowest()
    assert recovery <= BACK_WITHIN_S
