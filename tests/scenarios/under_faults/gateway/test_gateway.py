"""Servers go away under 16 clients of the gateway: no request is lost that had not begun to be answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvshare.servers.http import Http
from tests.rig.network import DECODE, PREFILL, Host
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import Stack
from tests.scenarios.under_faults.traffic import Sent, Traffic

HERE = Path(__file__).parent
URL = f"http://{PREFILL.address}:8000"
CLIENTS, PROMPTS, SECONDS, SECONDS_LONG = 16, 12, 8.0, 60.0
STALL_S = 15.0  # eight clients a core, beside all else that runs there
CUT = "gives up in its answer"  # how a client words an error event

pytestmark = pytest.mark.timeout(1200)


@dataclass
class Through(Traffic):
    """Clients of the gateway, whichever host they mean."""

    def http(self, _: Host) -> Http:
        return Http(URL, self.api_key)

    @property
    def cut(self) -> list[Sent]:
        """Requests whose answers began and ended with an error event."""
        return [one for one in self.sent if one.error and CUT in one.error]

    @property
    def lost(self) -> list[Sent]:
        """Requests that failed before their answers began."""
        return [one for one in self.sent if one.error and CUT not in one.error]

    @contextmanager
    def clients(self, traffic: Traffic) -> Iterator[None]:
        with self.running([DECODE], traffic.know(PROMPTS), clients=CLIENTS, pause_s=0.05):
            yield


@pytest.fixture
def through(traffic: Traffic) -> Through:
    return Through(seed=traffic.seed + 1)


def kill(service: str) -> Callable[[Stack], None]:
    return lambda stack: stack.kill(service)


def drain(stack: Stack) -> None:
    stopped = stack.machines.run("down", "decode")
    assert stopped.code == 0, stopped.err
    assert not stack.is_running("decode")


FAULTS = {"decode drained": drain, "decode killed": kill("decode"), "prefill killed": kill("prefill")}
IN_SHORT = ("decode drained", "decode killed")


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest, long: bool) -> str:
    name = str(request.param)
    if name not in IN_SHORT and not long:
        pytest.skip("one more start of a server: make test-faults")
    return name


def test_what_had_not_begun_is_answered_by_another_server(
    fault: str,
    stack: Stack,
    traffic: Traffic,
    through: Through,
    record: Callable[[Figures], Figures],
    long: bool,
) -> None:
    seconds = SECONDS_LONG if long else SECONDS
    with through.clients(traffic):
        time.sleep(seconds / 3)
        FAULTS[fault](stack)
        time.sleep(seconds * 2 / 3)
    # An answer that had begun on the killed server is no request lost; its client is told.
    notes = {"clients": str(CLIENTS), "ended by an error event": str(len(through.cut))}
    rest = [one for one in through.sent if one not in through.cut]
    seen = record(figures.of(HERE, fault, 1, rest, notes=notes))
    assert not through.lost
    assert len(through.cut) <= (0 if fault == "decode drained" else CLIENTS)
    assert seen.wrong == 0, through.faulty()
    assert (seen.longest_wait_s or 0) <= STALL_S, through.slowest()
