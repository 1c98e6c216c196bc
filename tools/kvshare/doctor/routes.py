"""Who must reach whom: each port of the stack, and the machines from which it is dialled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvshare.stack.members import Member, Server, Stack
from kvshare.stack.ports import NONE, Caller, Port, ports_of


@dataclass(frozen=True)
class Route:
    """A port of a member, and a context from whose machine it must be reached."""

    source: str
    target: Member
    port: Port


def required(stack: Stack) -> tuple[Route, ...]:
    """Return every connection that the running stack makes, each once."""
    return tuple(dict.fromkeys(_required(stack)))


def _required(stack: Stack) -> Iterator[Route]:
    for member in stack.members:
        for port in ports_of(member):
            for server in (stack.prefill, *stack.decodes):
                caller = Caller.PREFILL if server is stack.prefill else Caller.DECODE
                if caller in port.callers and not _calls_itself(server, member, stack):
                    yield Route(server.context, member, port)


def _calls_itself(server: Server, member: Member, stack: Stack) -> bool:
    """Return whether a server would dial its own port; on prefill's, its client and controller do."""
    return server is member and server is not stack.prefill


def private(stack: Stack) -> Iterator[tuple[Member, Port]]:
    """Yield the ports that ask nobody who calls, so that only the stack's machines should reach them."""
    for member in stack.members:
        for port in ports_of(member):
            if port.authenticated == NONE:
                yield member, port
