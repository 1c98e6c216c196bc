"""Which machine reaches which port: listeners where the stack is not up, and connections from all sides."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

from kvshare import records
from kvshare.contract import Answer, Endpoint, Facts, Held
from kvshare.doctor.containers import OneOffs
from kvshare.doctor.evidence import OPERATOR, Dialed, Evidence
from kvshare.doctor.routes import private, required
from kvshare.errors import CouldNotCheckError
from kvshare.operate.preflight import ANY_ADDRESS
from kvshare.site.nodes import at_once
from kvshare.stack.members import Server
from kvshare.stack.ports import ranges_of

OPERATOR_TIMEOUT_S = 2.0
HIGHEST_CONTROL_PORT = 19999  # below what kernels give out by themselves, above the stack's own
NOBODYS_PORT = "a port that nothing listens on"
ANSWERS_ALL = "something on the way answers every port, even one that nothing listens on"


@dataclass(frozen=True)
class Target:
    """One connection to try: from a context's machine, or from the operator's."""

    context: str
    member: str
    host: str
    port: int
    purpose: str
    free: bool = False


@dataclass(frozen=True)
class Listeners:
    """What listens: a port of UCX's range by host, and the ports that could not be held, in words."""

    free: Mapping[str, int]
    refused: tuple[str, ...]


def listen(evidence: Evidence, one_offs: OneOffs, listeners: ExitStack) -> Listeners:
    """Hold every port that the stack would have and nobody has, and one of UCX's range for each server."""
    free: dict[str, int] = {}
    refused: list[str] = []
    for context in _contexts_seen(evidence):
        data = _data_ports(evidence, context)
        wanted = [*_to_hold(evidence, context), *data]
        try:
            texts = (f"{place.host}:{place.port}" for place in wanted)
            said = listeners.enter_context(one_offs.hold(context, (), ("probe", "listen", *texts)))
        except CouldNotCheckError as error:
            refused.append(f"context {context}: {error.message}")
            continue
        held = records.loads(Held, said)
        free |= {place.host: place.port for place in data}
        refused += [f"{r.host}:{r.port}: {r.error}" for r in held.refused]
    return Listeners(free, tuple(refused))


def dial(evidence: Evidence, one_offs: OneOffs, free: Mapping[str, int]) -> tuple[Dialed, ...]:
    """Try every connection that the stack makes, and from the operator's machine those that it must not."""
    targets = tuple(_targets(evidence, free))

    def of_context(context: str) -> list[Dialed]:
        mine = [target for target in targets if target.context == context]
        said = one_offs.run(context, (), ("probe", "dial", *(f"{t.host}:{t.port}" for t in mine)))
        return [
            _dialed(evidence, target, answer.error)
            for target, answer in zip(mine, records.loads(tuple[Answer, ...], said), strict=True)
        ]

    found, errors = at_once(of_context, dict.fromkeys(target.context for target in targets))
    failed = [_dialed(evidence, t, errors[t.context]) for t in targets if t.context in errors]
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


def _contexts_seen(evidence: Evidence) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node.context for node in evidence.nodes if node.facts is not None))


def _facts_on(evidence: Evidence, context: str) -> Facts:
    return next(node.facts for node in evidence.nodes if node.context == context and node.facts is not None)


def _to_hold(evidence: Evidence, context: str) -> Iterable[Endpoint]:
    facts = _facts_on(evidence, context)
    members = [m for m in evidence.members_on(context) if facts.holder(m.host) is not None]
    for member in members:
        for port in member.ports:
            if not is_taken(facts.listening, member.host, port):
                yield Endpoint(member.host, port)


def _data_ports(evidence: Evidence, context: str) -> tuple[Endpoint, ...]:
    """Return one free port for each address of a machine's servers, out of UCX's range."""
    facts = _facts_on(evidence, context)
    found: dict[str, Endpoint] = {}
    for member in evidence.members_on(context):
        if isinstance(member, Server) and facts.holder(member.host) is not None:
            first, last = member.data_ports
            free = (p for p in range(first, last + 1) if not is_taken(facts.listening, member.host, p))
            if (port := next(free, None)) is not None:
                found.setdefault(member.host, Endpoint(member.host, port))
    return tuple(found.values())


def is_taken(listening: Iterable[Endpoint], host: str, port: int) -> bool:
    """Return whether something listens on that port of that address."""
    return any(e.port == port and e.host in (host, *ANY_ADDRESS) for e in listening)


def _targets(evidence: Evidence, free: Mapping[str, int]) -> Iterable[Target]:
    seen = _contexts_seen(evidence)
    for route in required(evidence.stack):
        if route.source in seen and route.target.context in seen:
            member = route.target
            yield Target(route.source, member.name, member.host, route.port.number, route.port.purpose)
    servers = (evidence.stack.prefill, *evidence.stack.decodes)
    for target in servers:
        for source in dict.fromkeys(server.context for server in servers if server is not target):
            if source in seen and target.host in free:
                port = free[target.host]
                yield Target(source, target.name, target.host, port, _purpose(target), free=True)
            if source in seen and target.context in seen:
                port = _nobodys_port(evidence, target, free)
                yield Target(source, target.name, target.host, port, NOBODYS_PORT)


def _purpose(server: Server) -> str:
    return ranges_of(server)[0].purpose


def _nobodys_port(evidence: Evidence, server: Server, free: Mapping[str, int]) -> int:
    """Return a port that nothing listens on at a server's address."""
    listening = _facts_on(evidence, server.context).listening
    held = {free.get(server.host, 0), *(port for member in evidence.stack.members for port in member.ports)}
    return next(
        port
        for port in range(HIGHEST_CONTROL_PORT, 1024, -1)
        if port not in held and not is_taken(listening, server.host, port)
    )


def _dialed(evidence: Evidence, target: Target, error: str) -> Dialed:
    source = next(m for m in evidence.members_on(target.context) if isinstance(m, Server))
    return Dialed(source.name, target.member, target.host, target.port, target.purpose, error, target.free)


def _from_operator(evidence: Evidence) -> tuple[Dialed, ...]:
    """Dial what only the stack's machines should reach, unless the operator's is one of them."""
    mine = evidence.operator.addresses
    if any(member.host in mine for member in evidence.stack.members):
        return ()
    seen = _contexts_seen(evidence)
    targets = [
        Dialed(OPERATOR, member.name, member.host, port.number, port.purpose, "")
        for member, port in private(evidence.stack)
        if member.context in seen
    ]
    for server in (evidence.stack.prefill, *evidence.stack.decodes):
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
