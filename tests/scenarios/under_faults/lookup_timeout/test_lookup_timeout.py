"""A pull that takes longer than a lookup may: the prompt is recomputed, and served when asked again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig import network
from tests.rig.network import DECODE, Link
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import HOST_OF, Stack
from tests.scenarios.under_faults.traffic import LOOKUP_TIMEOUT_S, WAIT_S, Traffic

HERE = Path(__file__).parent
TOO_SLOW = Link(rate=1e6)  # bytes a second: a chunk of 6.5 MB takes more than twice the timeout
BACK_WITHIN_S = 30

pytestmark = pytest.mark.timeout(900)


def test_a_lookup_that_times_out_costs_its_timeout_and_no_more(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    pool = traffic.know(10 if long else 2)
    with stack.survivors(*HOST_OF):
        network.shape(DECODE, TOO_SLOW)
        for known in pool:
            sent = traffic.ask(DECODE, known)
            assert sent.waited_s >= LOOKUP_TIMEOUT_S, "the lookup did not time out, so nothing was tested"
            traffic.ask_all(DECODE, [known] * 3, "again")
        network.unshape(DECODE)
        recovery = traffic.seconds_until_reuse(2 * BACK_WITHIN_S)
    seen = record(figures.of(HERE, "and the same prompt again", len(pool), traffic.sent, recovery))
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert (seen.longest_wait_s or 0) <= WAIT_S, traffic.slowest()
    assert recovery <= BACK_WITHIN_S
