"""The stack on two Docker engines, each host with an address of its own (tests/rig)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.rig import network
from tests.rig.network import DECODE, PREFILL, Host
from tests.rig.sshd import SshServer
from tests.scenarios.conftest import TwoMachines

KEY = "sk-not-a-real-key"


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


@pytest.fixture(scope="package")
def guarded(rig: TwoMachines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoMachines]:
    """Each machine behind its own firewall rules before anything is started, and an API key for all of it."""
    network.require("nft")
    key = tmp_path_factory.mktemp("secrets") / "key"
    key.write_text(f"{KEY}\n")
    rig.settings["API_KEY_FILE"] = str(key)
    for node, host in (("prefill", PREFILL), ("decode", DECODE)):
        rules = rig.kvshare("ports", "--format", "nft", "--node", node)
        assert rules.code == 0, rules.err
        subprocess.run(host.command("nft", "-f", "-"), input=rules.out, text=True, check=True, timeout=60)
    yield rig
    del rig.settings["API_KEY_FILE"]
    for host in (PREFILL, DECODE):
        remove_rules(host)


def remove_rules(host: Host) -> None:
    subprocess.run(host.command("nft", "delete", "table", "inet", "kvshare"), capture_output=True, timeout=60)
