"""Who must reach whom: each port of the stack, and the machines from which it is dialled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvshare.ports import Port, ports_of
from kvshare.stack import Controller, Server, Stack


@dataclass(frozen=True)
class Route:
    """A port of a member, and a context from whose machine it must be reached."""

    source: str
    target: Controller | Server
    port: Port


def required(stack: Stack) -> tuple[Route, ...]:
    """Return every connection that the running stack makes, each once."""
    return tuple(dict.fromkeys(_required(stack)))


def _required(stack: Stack) -> Iterator[Route]:
    servers = (stack.prefill, *stack.decodes)
    for member in stack.members:
        for port in ports_of(member):
            for source in _who_dials(stack, member, port, servers):
                yield Route(source, member, port)


def _who_dials(
    stack: Stack, member: Controller | Server, port: Port, servers: tuple[Server, ...]
) -> Iterator[str]:
    if isinstance(member, Controller):  # every worker registers and reports
        yield from (server.context for server in servers)
    elif port.number == member.api_port:  # the client container runs beside prefill
        yield stack.prefill.context
    elif port.number == member.worker_port:
        yield stack.controller.context
    else:  # peers among themselves
        yield from (server.context for server in servers if server is not member)


def private(stack: Stack) -> Iterator[tuple[Controller | Server, Port]]:
    """Yield the ports that nobody but the stack's machines should reach: all but the servers' APIs."""
    for member in stack.members:
        for port in ports_of(member):
            if isinstance(member, Controller) or port.number != member.api_port:
                yield member, port
