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
from tests.scenarios.under_faults.traffic import LOOKUP_TIMEOUT_S, WAIT_S, Sent, Traffic

HERE = Path(__file__).parent
TOO_SLOW = Link(rate=1e6)  # bytes a second: a chunk of 6.5 MB takes more than twice the timeout
BACK_WITHIN_S = 30

pytestmark = pytest.mark.timeout(900)


def test_a_lookup_that_times_out_costs_its_timeout_and_no_more(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    pool, asked = traffic.know(10 if long else 2), list[Sent]()
    with stack.survivors(*HOST_OF):
        network.shape(DECODE, TOO_SLOW)
        for known in pool:
            asked.append(traffic.ask(DECODE, known))
            traffic.ask_all(DECODE, [known] * 3, "again")
        network.unshape(DECODE)
        recovery = traffic.seconds_until_reuse(2 * BACK_WITHIN_S)
    # A peer that was too slow for a while is not waited for again at once, so not every lookup need time out.
    timed_out = sum(one.waited_s >= LOOKUP_TIMEOUT_S for one in asked)
    seen = record(figures.of(HERE, "and the same prompt again", timed_out, traffic.sent, recovery))
    assert timed_out, "no lookup timed out, so nothing was tested"
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert (seen.longest_wait_s or 0) <= WAIT_S, traffic.slowest()
    assert recovery <= BACK_WITHIN_S
