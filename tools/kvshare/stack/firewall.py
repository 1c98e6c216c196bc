"""Firewall rules for one machine, from the registry of ports: nftables and ufw.

Only kvshare's own ports are judged. What else comes in, ssh before all, is left to the machine's other rules,
so that nobody locks himself out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from kvshare import templates
from kvshare.errors import KvshareError
from kvshare.stack.members import Stack
from kvshare.stack.ports import Caller, Port, callers_of, host_of, of_machine, registry

Network = IPv4Network | IPv6Network

UFW_PORTS = 15  # at most, in one rule; a range counts as two


@dataclass(frozen=True)
class Opening:
    """A port, and from where it may be reached; ``sources`` None means from anywhere."""

    port: Port
    sources: tuple[Network, ...] | None

    @property
    def nft_sources(self) -> tuple[str, ...]:
        """What nft's rules say of the sources, one rule a family, as nft has it."""
        if self.sources is None:
            return ("",)
        families = {"ip": IPv4Network, "ip6": IPv6Network}
        named = {n: [_plain(s) for s in self.sources if isinstance(s, kind)] for n, kind in families.items()}
        return tuple(f"{name} saddr {{ {', '.join(some)} }} " for name, some in named.items() if some)


@dataclass(frozen=True)
class Machine:
    """What the firewall of one machine has to know."""

    names: tuple[str, ...]
    host: str
    openings: tuple[Opening, ...]


def machine_of(stack: Stack, node: str | None, clients: Sequence[str]) -> Machine:
    """Return the machine of a node, with every port of all nodes on it.

    ``clients`` are addresses and networks that may use the servers' API; none means anyone.
    KvshareError if ``node`` is unknown, or missing where there are several machines, or an address is none.
    """
    hosts = {member.name: member.host for member in stack.members}
    if node is None and len(set(hosts.values())) > 1:
        raise KvshareError(f"rules are for one machine: add --node, one of {', '.join(hosts)}.")
    host = host_of(node or stack.prefill.name, stack)
    allowed = tuple(_network(client, "CLIENTS") for client in clients)
    openings = tuple(
        Opening(port, _sources(port, stack, allowed)) for port in of_machine(registry(stack), host)
    )
    names = tuple(name for name, place in hosts.items() if place == host)
    return Machine(names, host, openings)


def nft(machine: Machine) -> str:
    """Return a table that `nft -f` loads, and loads again in its own place."""
    return templates.fill("kvshare.stack", "nft.j2", machine=machine)


def ufw(machine: Machine) -> str:
    """Return the commands that make the same rules with ufw."""
    grouped: dict[tuple[Network, ...] | None, list[Port]] = {}
    for opening in machine.openings:
        grouped.setdefault(opening.sources, []).append(opening.port)
    rules = [
        ("allow", source, some)
        for sources, ports in grouped.items()
        for source in (["any"] if sources is None else map(_plain, sources))
        for some in _ufw_portions(ports)
    ]
    closed = _ufw_portions([opening.port for opening in machine.openings])
    rules += [("deny", "any", some) for some in closed]
    return templates.fill("kvshare.stack", "ufw.j2", machine=machine, rules=rules)


def _sources(port: Port, stack: Stack, clients: tuple[Network, ...]) -> tuple[Network, ...] | None:
    if Caller.CLIENTS in port.callers and not clients:
        return None
    found = [_network(host, "a host in .env") for host in callers_of(port, stack)]
    found += clients if Caller.CLIENTS in port.callers else ()
    # nft refuses sets whose members overlap.
    four = collapse_addresses(network for network in found if isinstance(network, IPv4Network))
    six = collapse_addresses(network for network in found if isinstance(network, IPv6Network))
    return (*four, *six)


def _network(text: str, what: str) -> Network:
    try:
        return ip_network(text)
    except ValueError:
        raise KvshareError(
            f"{what} is {text}, which is no address or network such as 192.168.110.0/24: "
            "firewall rules cannot name it."
        ) from None


def _plain(network: Network) -> str:
    """Return an address without the /32 or /128 that a network of one has."""
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _ufw_portions(ports: Sequence[Port]) -> list[str]:
    """Return the ports as ufw writes them, as many together as it takes in one rule."""
    portions: list[list[Port]] = [[]]
    for port in ports:
        if sum(1 + (p.first != p.last) for p in (*portions[-1], port)) > UFW_PORTS:
            portions.append([])
        portions[-1].append(port)
    return [",".join(port.text.replace("-", ":") for port in some) for some in portions]
