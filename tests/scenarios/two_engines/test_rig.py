"""The rig is what it says: three hosts on one cable each, and nothing of it in this machine's own network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.rig import network
from tests.rig.network import DECODE, OPERATOR, PREFILL, Host, Link
from tests.scenarios.conftest import TwoMachines

pytestmark = pytest.mark.timeout(300)

PORT = 7000
LISTEN = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(flush=True)
while True:
    server.accept()[0].close()
"""
# The time of a TCP handshake in s, one round trip; the first also asks who has the address.
KNOCK = """
import socket, sys, time
def knock():
    begin = time.monotonic()
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    return time.monotonic() - begin
knock()
print(min(knock() for _ in range(5)))
"""


def knock(source: Host) -> float | None:
    """Round-trip time in s from a host to the listener on decode, or None if there is no way."""
    command = source.command(sys.executable, "-c", KNOCK, DECODE.address, str(PORT))
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return float(result.stdout) if result.returncode == 0 else None


@pytest.fixture
def listener(rig: TwoMachines) -> Iterator[None]:
    """Something to knock at, on the decode host."""
    del rig
    command = DECODE.command(sys.executable, "-c", LISTEN, DECODE.address, str(PORT))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def test_this_machines_own_network_knows_nothing_of_it(rig: TwoMachines) -> None:
    del rig
    addresses = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries]
    assert [address for address in addresses if address.startswith("192.168.110.")] == []
    routes = network.run(["ip", "route", "show", "table", "all"])
    assert "192.168.110." not in routes


@pytest.mark.usefixtures("listener")
def test_hosts_reach_each_other() -> None:
    assert knock(PREFILL) is not None
    assert knock(OPERATOR) is not None


@pytest.mark.usefixtures("listener")
def test_a_cable_can_be_longer_and_cut() -> None:
    near = knock(PREFILL)
    network.shape(DECODE, Link(delay=0.01))
    try:
        far = knock(PREFILL)
    finally:
        network.unshape(DECODE)
    assert near is not None
    assert far is not None
    assert near < 0.02 <= far < 0.1
    network.partition(DECODE)
    try:
        assert knock(PREFILL) is None
    finally:
        network.heal(DECODE)
    assert knock(PREFILL) is not None


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize("command", ["down", "partition decode", "shape decode --delay-ms 500"])
def test_a_rig_in_use_is_not_touched(command: str) -> None:
    words = [sys.executable, "-m", "tests.rig", *command.split()]
    result = subprocess.run(words, cwd=network.ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "the rig is in use by process" in result.stderr
    assert knock(PREFILL) is not None
