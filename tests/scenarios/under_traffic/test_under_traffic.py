"""Requests as users send them: each is answered as by a server alone, and nothing is left behind."""

import logging
import time
from collections.abc import Callable

import pytest

from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_traffic.conftest import HERE, SEED
from tests.scenarios.under_traffic.oracle import Moved, Oracle, moved
from tests.scenarios.under_traffic.requests import CARRIED, draw_case

WAVES = 18
WARM_CASES = 10  # until then memory grows with what is cached, however long they take
GROWTH_LONG = 1.05  # of memory, afterwards

LOGGER = logging.getLogger("kvshare.traffic")

pytestmark = pytest.mark.timeout(5400)


def test_every_request_is_answered_as_by_a_server_alone(
    oracle: Oracle, minutes: float, record: Callable[[Figures], Figures]
) -> None:
    if minutes:
        oracle.meet_every_length()
    started, begun, before = oracle.started_at(), time.monotonic(), moved()
    memory, cases = [oracle.memory_bytes()], 0
    while not cases or time.monotonic() < begun + 60 * minutes:
        oracle.require(draw_case(SEED + cases, WAVES))
        cases += 1
        memory.append(oracle.memory_bytes())
        mib = memory[-1] >> 20
        LOGGER.info("case %d, %d requests, %d MiB of memory", cases, len(oracle.played), mib)
    did, grown = moved() - before, memory[-1] / memory[min(cases, WARM_CASES)]
    record(figures(oracle, did, cases, grown))
    assert oracle.reused, "no answer says what was reused for it"
    assert oracle.answered >= CARRIED
    assert did.pulled_tokens, did
    assert did.preemptions, did
    assert did.evicted_keys, did
    assert oracle.started_at() == started
    assert oracle.left_behind() == {}
    assert oracle.said() == []
    assert grown <= GROWTH_LONG


def figures(oracle: Oracle, did: Moved, cases: int, grown: float) -> Figures:
    """The line of this scenario; it is only reached with every answer right."""
    return Figures(
        fault=HERE.name,
        variant="requests as users send them",
        injected=sum(one.refused for one in oracle.played),
        requests=len(oracle.played),
        failures=0,
        wrong=0,
        longest_wait_s=round(oracle.longest_s, 2),
        notes={
            "drawn": f"{cases} cases" if cases > 1 else "one case",
            "reused": f"{oracle.reused} tokens",
            "pulled": f"{did.pulled_tokens:.0f} tokens",
            "preempted": f"{did.preemptions:.0f} requests",
            "evicted": f"{did.evicted_keys:.0f} keys",
            "hung up": f"{sum(one.hang_up_s is not None for one in oracle.played)}",
            "memory": f"{grown:.2f} times that after {min(cases, WARM_CASES)}",
        },
    )
