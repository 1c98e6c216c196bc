"""The real stack on two Docker engines, each host with an address of its own (tests/rig)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.rig import engines, network
from tests.rig.__main__ import SETTINGS
from tests.rig.network import DECODE, PREFILL
from tests.rig.sshd import SshServer
from tests.scenarios.conftest import START_TIMEOUT_S, Outcome, Rig

ENGINES = (PREFILL, DECODE)


class TwoMachines(Rig):
    """The stack over the rig's contexts; the tool runs as the operator, or on the operator's own host."""

    def __init__(self) -> None:
        super().__init__()
        self._seed += 1000  # apart from the other scenarios' prompts
        self.settings: dict[str, str] = dict(SETTINGS)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.settings, "NO_COLOR": "1"}

    def up(self, node: str = "all", **settings: str) -> Outcome:
        return self.kvshare("up", node, "--timeout", str(START_TIMEOUT_S - 20), **settings)


@pytest.fixture(scope="session")
def rig(images: dict[str, str]) -> Iterator[TwoMachines]:
    """Two engines with the images of this tree; at the end nothing of them runs, and no namespace is left."""
    del images
    network.require("ip", "nsenter", "dockerd", "sshd", "ssh-keygen")
    network.up()
    try:
        for host in ENGINES:
            engines.start(host)
        engines.load_images(ENGINES)
        yield TwoMachines()
    finally:
        for host in ENGINES:
            engines.remove(host, purge=False)
        network.down()


@pytest.fixture
def ssh(rig: TwoMachines) -> Iterator[SshServer]:
    """An ssh server on the decode host, whose key nobody knows yet."""
    del rig
    server = SshServer(DECODE)
    server.start()
    yield server
    server.stop()
