"""A thousand connections that say nothing, on every ZMQ port at once: nothing stops."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.rig.network import DECODE
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import HOST_OF, Socket, Stack
from tests.scenarios.under_faults.traffic import Traffic, as_operator

HERE = Path(__file__).parent
EACH, SPARE_FILES = 1000, 500

pytestmark = pytest.mark.timeout(900)


@contextmanager
def held_open(sockets: Sequence[Socket]) -> Iterator[int]:
    """That many connections to each port, from the operator's host, until the block ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, EACH * len(sockets) + SPARE_FILES), hard))
    addresses = [(one.host.address, one.port) for one in sockets for _ in range(EACH)]
    with ExitStack() as opened:
        connections = as_operator(lambda: [socket.create_connection(one, timeout=10) for one in addresses])
        for connection in connections:
            opened.enter_context(connection)
        try:
            yield len(connections)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_silent_connections_keep_nobody_from_being_served(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    pool = traffic.know(6)
    with stack.survivors(*HOST_OF), held_open(stack.sockets) as injected:
        traffic.ask_all(DECODE, pool)
        recovery = traffic.seconds_until_reuse(30)
        verified = stack.verify() if long else None
    seen = record(figures.of(HERE, f"{len(stack.sockets)} ports", injected, traffic.sent, recovery))
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert verified is None or verified.code == 0, verified
