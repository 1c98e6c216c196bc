"""The stack of two machines, made whole before every fault."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest

from tests.rig import network
from tests.rig.network import DECODE, PREFILL
from tests.scenarios.conftest import TwoMachines
from tests.scenarios.under_faults.machines import Stack
from tests.scenarios.under_faults.traffic import Traffic

LAST = "mixed_versions"  # it leaves a stack that is not whole, and another test would wait for a new one


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LAST in item.nodeid)


@pytest.fixture
def traffic(request: pytest.FixtureRequest) -> Traffic:
    """Clients with prompts of this test's own."""
    seed = zlib.crc32(request.node.nodeid.encode()) % 100_000
    return Traffic(seed, sharing=request.config.getoption("--sharing"))


@pytest.fixture
def stack(two_machines: TwoMachines, traffic: Traffic) -> Iterator[Stack]:
    """Both machines with the whole stack running, reuse proven; afterwards the network is whole again."""
    stack = Stack(two_machines)
    stack.make_whole(traffic)
    traffic.sent.clear()
    yield stack
    for host in (PREFILL, DECODE):
        network.heal(host)
        network.unshape(host)
