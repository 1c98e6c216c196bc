"""Every TCP port of the stack, once: who listens, whether it asks who calls, and who has to reach it.

`kvshare ports`, docs/ports.md, the firewall rules and the doctor are made from this. Numbers come from
x-kvshare in compose.yaml, by way of the resolved stack.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table

from kvshare.errors import KvshareError, did_you_mean
from kvshare.stack.members import Cache, Controller, Gateway, Member, Server, Stack, Watcher

PLAIN_WIDTH = 160  # columns of a table that goes to a file or a pipe
NONE = "no"
API_KEY = "/v1 only, with API_KEY_FILE"
CLUSTER_KEY = "for the cluster key"


class Caller(StrEnum):
    """Who has to reach a port from another machine; whoever is not named must not."""

    PREFILL = "prefill node"
    DECODE = "decode nodes"
    CLIENTS = "clients"


NODES = (Caller.PREFILL, Caller.DECODE)


@dataclass(frozen=True)
class Port:
    """One TCP port that a member listens on, or a range out of which it takes some."""

    node: str
    host: str
    first: int
    last: int
    purpose: str
    process: str
    protocol: str
    authenticated: str
    callers: tuple[Caller, ...]

    @property
    def number(self) -> int:
        """The port, or the first of the range."""
        return self.first

    @property
    def text(self) -> str:
        """The port or the range as people and nft write it, e.g. ``8700-8799``."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def registry(stack: Stack) -> tuple[Port, ...]:
    """Every port of the whole stack, member by member in the order of start."""
    return tuple(port for member in stack.members for port in (*ports_of(member), *ranges_of(member)))


def ports_of(member: Member) -> tuple[Port, ...]:
    """Every port that a member of the stack alone may listen on."""
    if isinstance(member, Gateway):
        return _gateway(member)
    if isinstance(member, Watcher):
        return (_port(member, member.port, f"{member.name} metrics", f"{member.name}", "HTTP", NONE, ()),)
    if isinstance(member, Cache):
        return _cache(member)
    return _controller(member) if isinstance(member, Controller) else _server(member)


def ranges_of(member: Member) -> tuple[Port, ...]:
    """The ranges out of which a member takes what is free: UCX of who keeps KV, its port for that."""
    if not isinstance(member, Server | Cache) or (isinstance(member, Server) and member.cache):
        return ()
    first, last = member.data_ports
    process = "NIXL in lmcache server" if isinstance(member, Cache) else "NIXL in vLLM"
    return (
        Port(
            member.name, member.host, first, last, f"{member.service} KV data", process,
            "UCX over TCP", NONE, _peers(member),
        ),
    )  # fmt: skip


def callers_of(port: Port, stack: Stack) -> tuple[str, ...]:
    """Addresses of the nodes that have to reach a port from another machine, each once."""
    hosts = {
        Caller.PREFILL: (stack.prefill.host,),
        Caller.DECODE: tuple(decode.host for decode in stack.decodes),
        Caller.CLIENTS: (),  # a decision, not a fact: CLIENTS in .env
    }
    wanted = (host for caller in port.callers for host in hosts[caller])
    return tuple(dict.fromkeys(host for host in wanted if host != port.host))


def host_of(node: str, stack: Stack) -> str:
    """Return a node's address; KvshareError names the nearest node if there is none of that name."""
    hosts = {member.name: member.host for member in stack.members}
    if node not in hosts:
        raise KvshareError(f"there is no node {node}{did_you_mean(node, hosts)}")
    return hosts[node]


def of_machine(ports: Iterable[Port], host: str) -> tuple[Port, ...]:
    """The ports on the machine of an address."""
    return tuple(port for port in ports if port.host == host)


def as_record(port: Port, stack: Stack) -> dict[str, Any]:
    """Return a port as plain data; ``from`` holds the addresses of the nodes that must reach it."""
    return {**asdict(port), "from": list(callers_of(port, stack))}


def print_table(ports: Iterable[Port]) -> None:
    """Print a table for people, without bending its lines."""
    columns = ("port", "on", "of", "process", "protocol", "asks who calls", "must be reached by")
    table = Table(*columns, box=None)
    for port in ports:
        table.add_row(
            port.text, port.host, port.purpose, port.process, port.protocol, port.authenticated,
            ", ".join(port.callers),
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(table)


def _controller(member: Controller) -> tuple[Port, ...]:
    def zmq(number: int, purpose: str) -> Port:
        return _port(
            member, number, f"controller {purpose}", "lmcache_controller", "ZeroMQ", CLUSTER_KEY, NODES
        )

    process = "lmcache coordinator" if member.is_coordinator else "lmcache_controller"
    http = _port(member, member.http_port, f"{member.name} HTTP", process, "HTTP", CLUSTER_KEY, NODES)
    if member.is_coordinator:
        return (http,)
    return (
        http,
        zmq(member.pull_port, "pull"),
        zmq(member.reply_port, "reply"),
        zmq(member.heartbeat_port, "heartbeat"),
    )


def _gateway(member: Gateway) -> tuple[Port, ...]:
    api = (Caller.CLIENTS, Caller.PREFILL)  # as of a server
    return (_port(member, member.port, "gateway API", "gateway", "HTTP", API_KEY, api),)


def _server(member: Server) -> tuple[Port, ...]:
    worker, peers = "LMCache worker in vLLM", _peers(member)

    def zmq(number: int, purpose: str, callers: tuple[Caller, ...]) -> Port:
        return _port(member, number, f"{member.service} {purpose}", worker, "ZeroMQ", CLUSTER_KEY, callers)

    def of_each_rank(numbers: tuple[int, ...], purpose: str, callers: tuple[Caller, ...]) -> Iterator[Port]:
        for rank, number in enumerate(numbers):
            yield zmq(number, f"{purpose} of rank {rank}" if member.ranks > 1 else purpose, callers)

    callers = (Caller.CLIENTS, Caller.PREFILL)  # prefill: the client container of `kvshare verify` runs there
    api = _port(member, member.api_port, f"{member.service} API", "vllm serve", "HTTP", API_KEY, callers)
    if member.cache:
        return (api,)
    return (
        api,
        *of_each_rank(member.worker_ports, "LMCache worker", (Caller.PREFILL,)),  # the controller calls it
        *of_each_rank(member.p2p_init_ports, "P2P init", peers),
        *of_each_rank(member.p2p_lookup_ports, "P2P lookup", peers),
        _port(member, member.nixl_port, f"{member.service} NIXL metrics", "NIXL in vLLM", "HTTP", NONE, ()),
    )


def _cache(member: Cache) -> tuple[Port, ...]:
    def port(number: int, purpose: str, protocol: str, asks: str, callers: tuple[Caller, ...]) -> Port:
        return _port(member, number, f"{member.service} {purpose}", "lmcache server", protocol, asks, callers)

    peers = _peers(member)
    return (
        port(member.port, "requests", "ZeroMQ", CLUSTER_KEY, peers),
        port(
            member.http_port, "HTTP", "HTTP", CLUSTER_KEY, (Caller.PREFILL,)
        ),  # its client reads what it counts
        port(member.p2p_port, "P2P", "ZeroMQ", CLUSTER_KEY, peers),
        port(member.nixl_port, "NIXL metrics", "HTTP", NONE, ()),
    )


def _peers(member: Server | Cache) -> tuple[Caller, ...]:
    """Any server may hold what another asks for; there is one prefill server, and it has none beside it."""
    return (Caller.DECODE,) if member.service in ("prefill", "prefill-cache") else NODES


def _port(
    member: Member,
    number: int,
    purpose: str,
    process: str,
    protocol: str,
    authenticated: str,
    callers: tuple[Caller, ...],
) -> Port:
    return Port(member.name, member.host, number, number, purpose, process, protocol, authenticated, callers)
