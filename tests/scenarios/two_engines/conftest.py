"""The stack on two Docker engines, each host with an address of its own (tests/rig)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig.network import DECODE
from tests.rig.sshd import SshServer
from tests.scenarios.conftest import TwoMachines


@pytest.fixture(scope="session")
def rig(two_machines: TwoMachines) -> TwoMachines:
    return two_machines


@pytest.fixture
def ssh(rig: TwoMachines) -> Iterator[SshServer]:
    """An ssh server on the decode host, whose key nobody knows yet."""
    del rig
    server = SshServer(DECODE)
    server.start()
    yield server
    server.stop()
