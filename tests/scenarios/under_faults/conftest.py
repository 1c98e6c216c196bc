"""The stack of two machines, made whole before every fault, and the figures of each."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import pytest

from tests.rig import network
from tests.rig.network import DECODE, PREFILL
from tests.scenarios.conftest import TwoMachines
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import Stack
from tests.scenarios.under_faults.traffic import Traffic

FIGURES = pytest.StashKey[dict[str, Figures]]()  # by the test's id
LAST = "mixed_versions"  # it leaves a stack that is not whole, and another test would wait for a new one


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LAST in item.nodeid)


@pytest.fixture
def traffic(request: pytest.FixtureRequest) -> Traffic:
    """Clients with prompts of this test's own."""
    return Traffic(seed=zlib.crc32(request.node.nodeid.encode()) % 100_000)


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


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Figures], Figures]:
    """Keep a fault's figures, for the line at the end of the run and for docs/reliability.md."""

    def keep(figures: Figures) -> Figures:
        request.config.stash.setdefault(FIGURES, {})[request.node.nodeid] = figures
        return figures

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash.get(FIGURES, {}):
        terminalreporter.section("faults")
        for one in figures.values():
            terminalreporter.write_line(one.line)
