"""Which machine reaches which port: listeners where the stack is not up, and connections from all sides."""

import socket
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

from kvshare import records
from kvshare.contract import Answer, Endpoint, Held
from kvshare.doctor.containers import OneOffs
from kvshare.doctor.evidence import OPERATOR, Dialed, Evidence
from kvshare.errors import CouldNotCheckError
from kvshare.site.base import answered, at_once, held
from kvshare.site.engine import Place
from kvshare.stack.members import Cache, Member, Server, Stack, bound_to
from kvshare.stack.ports import API_KEY, Caller, Port, ports_of, ranges_of

OPERATOR_TIMEOUT_S = 2.0
HIGHEST_CONTROL_PORT = 19999  # below what kernels give out by themselves, above the stack's own
NOBODYS_PORT = "a port that nothing listens on"
ANSWERS_ALL = "something on the way answers every port, even one that nothing listens on"


@dataclass(frozen=True)
class Listeners:
    """What listens: a port of UCX's range by host, and the ports that could not be held, in words."""

    free: Mapping[str, int]
    refused: tuple[str, ...]


def listen(evidence: Evidence, one_offs: OneOffs, listeners: ExitStack) -> Listeners:
    """Hold every port that the stack would have and nobody has, and one of UCX's range for each server."""
    free: dict[str, int] = {}
    refused: list[str] = []
    for context in evidence.machines:
        data = _data_ports(evidence, context)
        wanted = [*_to_hold(evidence, context), *data]
        try:
            texts = (f"{place.host}:{place.port}" for place in wanted)
            said = listeners.enter_context(held(one_offs.start(context, Place(), "probe", "listen", *texts)))
        except CouldNotCheckError as error:
            refused.append(f"context {context}: {error.message}")
            continue
        ports = records.loads(Held, said)
        free |= {place.host: place.port for place in data}
        refused += [f"{r.host}:{r.port}: {r.error}" for r in ports.refused]
    return Listeners(free, tuple(refused))


def dial(evidence: Evidence, one_offs: OneOffs, free: Mapping[str, int]) -> tuple[Dialed, ...]:
    """Try every connection that the stack makes, and from the operator's machine those that it must not."""
    planned = _planned(evidence, free)

    def of_context(context: str) -> list[Dialed]:
        mine = planned[context]
        texts = (f"{one.host}:{one.port}" for one in mine)
        said = answered(one_offs.start(context, Place(), "probe", "dial", *texts))
        answers = records.loads(tuple[Answer, ...], said)
        return [replace(one, error=answer.error) for one, answer in zip(mine, answers, strict=True)]

    found, errors = at_once(of_context, planned)
    failed = [
        replace(one, error=error.message) for context, error in errors.items() for one in planned[context]
    ]
    tried = (*(one for dialed in found.values() for one in dialed), *failed, *_from_operator(evidence))
    return _without_controls(tried)


def _without_controls(tried: Iterable[Dialed]) -> tuple[Dialed, ...]:
    """Take out the connections that should fail; where one stood, the others beside it prove nothing.

    A transparent proxy answers for hosts that are not there at all.
    """
    tried = tuple(tried)
    deceived = {(o.source, o.host) for o in tried if o.purpose == NOBODYS_PORT and not o.error}
    return tuple(
        replace(one, error=ANSWERS_ALL) if (one.source, one.host) in deceived and not one.error else one
        for one in tried
        if one.purpose != NOBODYS_PORT
    )


def _to_hold(evidence: Evidence, context: str) -> Iterable[Endpoint]:
    _, facts = evidence.machines[context]
    for member in evidence.members_on(context):
        for port in member.ports if facts.holder(member.host) is not None else ():
            if facts.listener(bound_to(member, port), port) is None:
                yield Endpoint(bound_to(member, port), port)


def _data_ports(evidence: Evidence, context: str) -> tuple[Endpoint, ...]:
    """Return one free port for each address of a machine's servers, out of UCX's range."""
    _, facts = evidence.machines[context]
    found: dict[str, Endpoint] = {}
    for member in evidence.members_on(context):
        if ranges_of(member) and facts.holder(member.host) is not None:
            (ports,) = ranges_of(member)
            free = (p for p in range(ports.first, ports.last + 1) if facts.listener(member.host, p) is None)
            if (port := next(free, None)) is not None:
                found.setdefault(member.host, Endpoint(member.host, port))
    return tuple(found.values())


def _planned(evidence: Evidence, free: Mapping[str, int]) -> dict[str, list[Dialed]]:
    """Return the connections to try, by the context from whose machine."""
    servers = evidence.stack.servers
    planned: dict[str, list[Dialed]] = {context: [] for context in evidence.machines}

    def plan(source: str, target: Member, port: int, purpose: str, is_free: bool = False) -> None:
        name = next(server.name for server in servers if server.context == source)
        planned[source].append(Dialed(name, target.name, bound_to(target, port), port, purpose, "", is_free))

    for source, target, port in required(evidence.stack):
        if source in planned and target.context in planned:
            plan(source, target, port.number, port.purpose)
    for target in servers:
        for source in dict.fromkeys(server.context for server in servers if server is not target):
            if source in planned and target.host in free:
                keeper = target.keeper
                plan(source, keeper, free[target.host], ranges_of(keeper)[0].purpose, is_free=True)
            if source in planned and target.context in planned:
                plan(source, target, _nobodys_port(evidence, target, free), NOBODYS_PORT)
    return {context: mine for context, mine in planned.items() if mine}


def _nobodys_port(evidence: Evidence, server: Server, free: Mapping[str, int]) -> int:
    """Return a port that nothing listens on at a server's address."""
    _, facts = evidence.machines[server.context]
    held = {free.get(server.host, 0), *(port for member in evidence.stack.members for port in member.ports)}
    return next(
        port
        for port in range(HIGHEST_CONTROL_PORT, 1024, -1)
        if port not in held and facts.listener(server.host, port) is None
    )


def _from_operator(evidence: Evidence) -> tuple[Dialed, ...]:
    """Dial what only the stack's machines should reach, unless the operator's is one of them."""
    mine = evidence.operator.addresses
    if any(member.host in mine for member in evidence.stack.members):
        return ()
    seen = evidence.machines
    targets = [
        Dialed(OPERATOR, member.name, member.host, port.number, port.purpose, "")
        for member, port in private(evidence.stack)
        if member.context in seen
    ]
    for server in evidence.stack.servers:
        if server.context in seen:
            port = _nobodys_port(evidence, server, {})
            targets.append(Dialed(OPERATOR, server.name, server.host, port, NOBODYS_PORT, ""))
    with ThreadPoolExecutor(max(1, len(targets))) as pool:
        errors = list(pool.map(lambda target: _knock(target.host, target.port), targets))
    return tuple(replace(target, error=error) for target, error in zip(targets, errors, strict=True))


def _knock(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), OPERATOR_TIMEOUT_S).close()
    except OSError as error:
        return str(error) or type(error).__name__
    return ""


# --- who must reach whom ------------------------------------------------------------------------------------


def required(stack: Stack) -> tuple[tuple[str, Member, Port], ...]:
    """Return every connection that the running stack makes, each once: a context, and a member's port."""
    return tuple(dict.fromkeys(_required(stack)))


def _required(stack: Stack) -> Iterator[tuple[str, Member, Port]]:
    for member in stack.members:
        for port in ports_of(member):
            for server in stack.servers:
                caller = Caller.PREFILL if server is stack.prefill else Caller.DECODE
                # On prefill's machine its client and the controller dial prefill itself.
                if caller in port.callers and (server is not member or server is stack.prefill):
                    yield server.context, member, port
            if isinstance(member, Server | Cache) and port.number == member.nixl_port:
                yield member.context, member, port


def private(stack: Stack) -> Iterator[tuple[Member, Port]]:
    """Yield the ports that ask nobody who calls, so that only the stack's machines should reach them."""
    return ((m, port) for m in stack.members for port in ports_of(m) if port.authenticated != API_KEY)
