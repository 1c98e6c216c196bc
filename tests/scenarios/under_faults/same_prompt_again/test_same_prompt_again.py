"""One prompt over and over on the node that pulled it, then from eight clients: nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.rig.network import DECODE
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import HOST_OF, Stack
from tests.scenarios.under_faults.traffic import WAIT_S, Traffic

HERE = Path(__file__).parent
REPEATS, REPEATS_LONG = 40, 200
CLIENTS = 8
TIMED_OUT = "is still waiting for async lookup"  # what LMCache says of a lookup that it gives up

pytestmark = pytest.mark.timeout(900)


def test_the_same_prompt_again_is_served_at_once(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    alone, together = traffic.know(2)
    repeats = REPEATS_LONG if long else REPEATS
    with stack.survivors(*HOST_OF, must_not_say=[TIMED_OUT]):
        traffic.ask_all(DECODE, [alone] * repeats)
        with ThreadPoolExecutor(CLIENTS) as clients:
            share = [together] * (repeats // CLIENTS)
            list(clients.map(lambda _: traffic.ask_all(DECODE, share), range(CLIENTS)))
    seen = record(figures.of(HERE, f"by one client, then by {CLIENTS}", 1, traffic.sent))
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert (seen.longest_wait_s or 0) <= WAIT_S, traffic.slowest()
