"""The nftables rules, loaded on hosts in namespaces: who must reach a port does, and nobody else.

Small listeners stand for the stack; the rules under the stack itself are a scenario of two engines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from kvshare.stack import firewall, ports
from tests.unit.build import STACK

PREFILL, DECODE, STRANGER = STACK.prefill.host, STACK.decode.host, "192.168.110.200"
NAMES = {PREFILL: "prefill", DECODE: "decode", STRANGER: "stranger"}
OTHER_PORT = 2222  # such as ssh's: not ours to judge
EDGES = {"8700-8799": (8700, 8755, 8799)}
READY, REACHED, SILENT = "ready", "reached", "silent"

# Listens on every port given until its standard input ends.
LISTEN = """
import socket, sys
held = [socket.create_server((sys.argv[1], int(port))) for port in sys.argv[2:]]
print("ready", flush=True)
sys.stdin.read()
"""
# Dials every HOST:PORT given, all at once, and says of each how it went within the time.
DIAL = """
import asyncio, sys
async def dial(target):
    host, port = target.split(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 2)
    except (TimeoutError, asyncio.TimeoutError):
        return "silent"
    except OSError as error:
        return type(error).__name__
    writer.close()
    return "reached"
async def main():
    print("\\n".join(await asyncio.gather(*map(dial, sys.argv[1:]))))
asyncio.run(main())
"""


@dataclass(frozen=True)
class Network:
    """Three hosts on one bridge; ``prefix`` keeps their namespaces apart from anybody else's."""

    prefix: str

    def namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def on(self, host: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace(NAMES[host]), *command]

    def load(self, host: str, rules: str) -> None:
        run(*self.on(host, "nft", "-f", "-"), given=rules)

    def dial(self, source: str, targets: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """How each connection went: reached, silent (nothing came back), or the error."""
        said = run(
            *self.on(source, sys.executable, "-c", DIAL, *(f"{host}:{port}" for host, port in targets))
        )
        return dict(zip(targets, said.split(), strict=True))


def run(*command: str, given: str | None = None) -> str:
    result = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, f"{' '.join(command[:8])} … failed: {result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    for program, package in (("nft", "nftables"), ("ip", "iproute2")):
        assert shutil.which(program), f"{program} is missing: apt-get install {package}, or type make test"
    made = Network(f"kvshare-rules-{os.getpid()}")
    with ExitStack() as undo:
        for name in ("switch", *NAMES.values()):
            run("ip", "netns", "add", made.namespace(name))
            undo.callback(run, "ip", "netns", "delete", made.namespace(name))
        switch = made.namespace("switch")
        run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        for host, name in NAMES.items():
            inside = ("ip", "-n", made.namespace(name))
            run(*inside, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", switch)
            run("ip", "-n", switch, "link", "set", "dev", name, "master", "bridge")
            run("ip", "-n", switch, "link", "set", "dev", name, "up")
            run(*inside, "addr", "add", f"{host}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "up")
            run(*inside, "link", "set", "lo", "up")
        yield made


def numbers(port: ports.Port) -> tuple[int, ...]:
    """The port, or of a range its ends and one between."""
    return (port.first,) if port.first == port.last else EDGES[port.text]


def expected(port: ports.Port, source: str, clients_only: bool) -> str:
    anyone = ports.Caller.CLIENTS in port.callers and not clients_only
    allowed = anyone or source == port.host or source in ports.callers_of(port, STACK)
    return REACHED if allowed else SILENT


@contextmanager
def listening(network: Network) -> Iterator[None]:
    """Every port of the stack, and one of somebody else's, listened on where it belongs."""
    with ExitStack() as undo:
        for host in (PREFILL, DECODE):
            here = ports.of_machine(ports.registry(STACK), host)
            wanted = [str(number) for port in here for number in numbers(port)]
            command = network.on(host, sys.executable, "-c", LISTEN, host, *wanted, str(OTHER_PORT))
            process = undo.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            undo.callback(process.stdin.close if process.stdin else lambda: None)
            assert process.stdout is not None
            assert process.stdout.readline().strip() == READY
        yield


def every_port() -> dict[tuple[str, int], ports.Port]:
    return {(port.host, number): port for port in ports.registry(STACK) for number in numbers(port)}


@pytest.fixture(scope="module")
def stack_of_listeners(network: Network) -> Iterator[Network]:
    with listening(network):
        yield network


@pytest.mark.parametrize("source", [PREFILL, DECODE, STRANGER], ids=NAMES.get)
def test_without_rules_everyone_reaches_everything(stack_of_listeners: Network, source: str) -> None:
    found = stack_of_listeners.dial(source, list(every_port()))
    assert set(found.values()) == {REACHED}


@pytest.mark.parametrize("clients", [(), ("10.0.0.0/8", "fd00::/64")], ids=["anyone", "clients"])
@pytest.mark.parametrize("source", [PREFILL, DECODE, STRANGER], ids=NAMES.get)
def test_with_rules_a_port_is_reached_by_whom_it_must_be_and_nobody_else(
    stack_of_listeners: Network, source: str, clients: tuple[str, ...]
) -> None:
    network = stack_of_listeners
    for host in (PREFILL, DECODE):
        machine = firewall.machine_of(STACK, NAMES[host], clients)
        network.load(host, firewall.nft(machine))
        network.load(host, firewall.nft(machine))  # again, in its own place
    found = network.dial(source, list(every_port()))
    assert found == {
        place: expected(port, source, clients_only=bool(clients)) for place, port in every_port().items()
    }
    others = [(host, OTHER_PORT) for host in (PREFILL, DECODE)]
    assert set(network.dial(source, others).values()) == {REACHED}, "other ports are left alone"


def test_clients_are_let_in_by_their_address(stack_of_listeners: Network) -> None:
    machine = firewall.machine_of(STACK, "decode", (f"{STRANGER}/32",))
    stack_of_listeners.load(DECODE, firewall.nft(machine))
    places = [(DECODE, STACK.decode.api_port), (DECODE, STACK.decode.worker_ports[0])]
    assert list(stack_of_listeners.dial(STRANGER, places).values()) == [REACHED, SILENT]


def test_one_chain_is_all_that_is_added_and_it_goes_with_one_command(stack_of_listeners: Network) -> None:
    on_decode = stack_of_listeners.on(DECODE, "nft")
    assert run(*on_decode, "list", "tables").split("\n")[0] == "table inet kvshare"
    run(*on_decode, "delete", "table", "inet", "kvshare")
    assert run(*on_decode, "list", "ruleset") == ""
