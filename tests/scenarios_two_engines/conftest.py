"""The real stack on two Docker engines, each host with an address of its own (tests/rig)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.rig import engines, network
from tests.rig.__main__ import SETTINGS
from tests.rig.network import DECODE, PREFILL
from tests.rig.sshd import SshServer
from tests.scenarios.conftest import START_TIMEOUT_S, Outcome, Rig

ENGINES = (PREFILL, DECODE)  # decode-2's is started by the test that needs it


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
        return self.run("up", node, "--timeout", str(START_TIMEOUT_S - 20), **settings)

    def make(self, target: str, *variables: str) -> Outcome:
        """A target of the Makefile; what is to be set up is, and not again."""
        command = ["make", "--old-file=setup", target, *variables]
        result = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=START_TIMEOUT_S
        )
        return Outcome(result.returncode, result.stdout, result.stderr)

    def run(self, *arguments: str, **settings: str) -> Outcome:
        """The tool with other settings than the two machines'."""
        return self.kvshare(*arguments, timeout=START_TIMEOUT_S, **settings)


@pytest.fixture(scope="session")
def rig(images: dict[str, str]) -> Iterator[TwoMachines]:
    """Two engines with the images of this tree; at the end nothing of them runs, and no namespace is left.

    Their images are kept, so that the next run need not load them again.
    """
    del images
    network.require("ip", "nsenter", "dockerd", "sshd", "ssh-keygen", "script")
    with network.claimed():
        _remove()  # what a run that was killed has left
        network.up()
        try:
            for host in ENGINES:
                engines.start(host)
                engines.clear(host)
            engines.load_images(ENGINES)
            yield TwoMachines()
        finally:
            _remove()


def _remove() -> None:
    for host in engines.HOSTS:
        engines.remove(host, purge=host not in ENGINES)
    network.down()


@pytest.fixture
def ssh(rig: TwoMachines) -> Iterator[SshServer]:
    """An ssh server on the decode host, whose key nobody knows yet."""
    del rig
    server = SshServer(DECODE)
    server.start()
    yield server
    server.stop()
