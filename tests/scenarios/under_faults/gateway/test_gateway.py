"""Servers go away under 16 clients of the gateway: no request is lost that had not begun to be answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvshare.servers.http import Http
from tests.rig import engines, network
from tests.rig.__main__ import settings_for
from tests.rig.network import DECODE, DECODE_2, PREFILL, Host
from tests.scenarios.keys import controllers_token
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import SETTLE_S, Stack
from tests.scenarios.under_faults.traffic import Sent, Traffic

HERE = Path(__file__).parent
URL = f"http://{PREFILL.address}:8000"
CLIENTS, PROMPTS, SECONDS, SECONDS_LONG = 16, 12, 8.0, 60.0
CHOSEN = ("SHARING", "COMPOSE_FILE")  # by the run, whatever the machines
STALL_S = 15.0  # eight clients a core, beside all else that runs there
SILENCE_S = 11.0  # after which the gateway gives a peer up that is gone without a word
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
    return Through(seed=traffic.seed + 1, sharing=traffic.sharing)


def kill(service: str) -> Callable[[Stack], None]:
    return lambda stack: stack.kill(service)


def drain(stack: Stack) -> None:
    stopped = stack.machines.run("down", "decode")
    assert stopped.code == 0, stopped.err
    assert not stack.is_running("decode")


def cut(stack: Stack) -> None:
    del stack
    network.partition(DECODE)


@contextmanager
def one_decode_node(stack: Stack) -> Iterator[None]:
    del stack
    yield


@contextmanager
def two_decode_nodes(stack: Stack) -> Iterator[None]:
    """A third machine, for as long as the block lasts; the gateway knows of it."""
    settings = stack.machines.settings
    engines.start(DECODE_2)
    try:
        engines.clear(DECODE_2)
        engines.load_images([DECODE_2])
        stack.machines.settings = settings_for(2) | {name: settings[name] for name in CHOSEN}
        stack.up()
        yield
    finally:
        stack.machines.settings = settings
        engines.remove(DECODE_2, purge=True)
        stack.up()


@dataclass(frozen=True)
class Fault:
    """What is done, to how many decode nodes, and how many answers that have begun may end by it."""

    act: Callable[[Stack], None]
    cut_answers: int
    in_short: bool = False
    nodes: Callable[[Stack], AbstractContextManager[None]] = one_decode_node
    silence_s: float = 0.0


FAULTS = {
    "decode cut off": Fault(cut, CLIENTS, silence_s=SILENCE_S),
    "decode drained": Fault(drain, 0, in_short=True),
    "decode killed": Fault(kill("decode"), CLIENTS, in_short=True),
    "one of two decode nodes killed": Fault(kill("decode"), CLIENTS, nodes=two_decode_nodes),
    "prefill killed": Fault(kill("prefill"), 0),
    "controller killed": Fault(kill("controller"), 0),
}


@pytest.fixture(params=FAULTS)
def name(request: pytest.FixtureRequest, long: bool) -> str:
    name = str(request.param)
    if not FAULTS[name].in_short and not long:
        pytest.skip("one more start of a server: make test-faults")
    return name


def test_what_had_not_begun_is_answered_by_another_server(
    name: str,
    stack: Stack,
    traffic: Traffic,
    through: Through,
    record: Callable[[Figures], Figures],
    long: bool,
) -> None:
    seconds, fault = SECONDS_LONG if long else SECONDS, FAULTS[name]
    with fault.nodes(stack), through.clients(traffic):
        time.sleep(seconds / 3)
        fault.act(stack)
        time.sleep(seconds * 2 / 3)
    # An answer that had begun on a server that went away is no request lost; its client is told.
    ended = through.cut
    notes = {"clients": str(CLIENTS), "ended by an error event": str(len(ended))}
    if ended:
        notes["the last of them after"] = f"{max(one.waited_s for one in ended):.1f} s"
    seen = record(figures.of(HERE, name, 1, [one for one in through.sent if one not in ended], notes=notes))
    assert not through.lost
    assert len(ended) <= fault.cut_answers
    assert seen.wrong == 0, through.faulty()
    assert through.slowest(1)[0].waited_s <= STALL_S + fault.silence_s, through.slowest()


def test_another_cluster_key_loses_no_request(
    stack: Stack, traffic: Traffic, through: Through, record: Callable[[Figures], Figures], long: bool
) -> None:
    if not long:
        pytest.skip("every server is started anew: make test-faults")
    old = controllers_token()
    with through.running([DECODE], traffic.know(PROMPTS)):
        rotated = stack.machines.run("key", "rotate")
    assert rotated.code == 0, rotated.err
    assert controllers_token() != old
    recovery = traffic.seconds_until_reuse(SETTLE_S)
    seen = record(figures.of(HERE, "key rotated", 1, through.sent, recovery, notes={"clients": "2"}))
    assert seen.failures == seen.wrong == 0, through.faulty()
