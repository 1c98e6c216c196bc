"""A cable that loses frames, or is long: no request hangs, and reuse is back with the good cable."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig import network
from tests.rig.network import DECODE, PREFILL, Link
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import HOST_OF, Stack
from tests.scenarios.under_faults.traffic import WAIT_S, Traffic

HERE = Path(__file__).parent
BACK_WITHIN_S = 30
SECONDS, SECONDS_LONG = 8, 60
ROUND_TRIPS = 5  # that the client's own request takes on the same cable, for a new connection and an answer

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    ("name", "link"),
    [("5 percent of frames lost", Link(loss=0.05)), ("200 ms each way", Link(delay=0.2))],
    ids=["lossy", "long"],
)
def test_no_request_hangs_on_a_bad_cable(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool, name: str, link: Link
) -> None:
    pool = traffic.know(40 if long else 8)
    with stack.survivors(*HOST_OF):
        network.shape(DECODE, link, seed=traffic.seed)
        with traffic.running((PREFILL, DECODE), pool):
            time.sleep(SECONDS_LONG if long else SECONDS)
        network.unshape(DECODE)
        recovery = traffic.seconds_until_reuse(2 * BACK_WITHIN_S)
    seen = record(figures.of(HERE, name, 1, traffic.sent, recovery))
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert (seen.longest_wait_s or 0) <= WAIT_S + ROUND_TRIPS * 2 * link.delay, traffic.slowest()
    assert recovery <= BACK_WITHIN_S
