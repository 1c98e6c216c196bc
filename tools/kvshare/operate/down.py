"""Stop a stack, or one node of it."""

import json
import time
from collections.abc import Iterable, Sequence
from functools import partial

import click

from kvshare.config.settings import Settings
from kvshare.contract import DRAINED
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.progress import step
from kvshare.site import compose
from kvshare.site.base import Site, answered, fetch
from kvshare.site.containers import Containers
from kvshare.site.engine import engine
from kvshare.stack.members import Member, Server, Stack, by_context

DRAIN_S = 120.0
POLL_S = 0.5


def stop(settings: Settings, names: Iterable[str]) -> None:
    """Stop and remove every container of the stack on these contexts; volumes and images stay.

    Raises:
        KvshareError: as ``Engine.supported`` does, when the other contexts have been served.
    """
    failed: list[KvshareError] = []
    for context in names:
        try:
            engine(context).supported()
            with step(f"Stop the stack on context {context}"):
                compose.run(settings, context, "down", "--remove-orphans", "--timeout", "20")
        except KvshareError as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise CouldNotCheckError(" ".join(error.message for error in failed))


def stop_members(settings: Settings, stack: Stack, members: Sequence[Member]) -> None:
    """Stop and remove these members alone; a server gets nothing new first, and ends what runs there.

    Raises:
        CouldNotCheckError: if an engine does not answer.
    """
    site = Containers(stack, settings)
    for member in members:
        if isinstance(member, Server) and stack.gateway not in (None, *members):
            with step(f"Wait until {member.name} has answered, {DRAIN_S:.0f} s at most"):
                unended = _unended(site, member)
            if unended:
                click.echo(f"kvshare: {member.name} is stopped all the same: {unended}", err=True)
    for context, services in by_context(members).items():
        with step(f"Stop {', '.join(services)} on context {context}"):
            compose.run(settings, context, "rm", "--stop", "--force", *services)


def _unended(site: Site, server: Server) -> str:
    """Drain a server; return what is left undone, in words."""
    try:
        left = drain(site, f"{server.host}:{server.api_port}", DRAIN_S)
    except CouldNotCheckError as error:
        return f"whether anything runs there is not known, {error.message.rstrip('.')}"
    return f"{left} requests still ran after {DRAIN_S:.0f} s, and end with an error" if left else ""


def drain(site: Site, place: str, limit_s: float) -> int:
    """Keep new requests off the server at ``HOST:PORT``; return how many still run there at the limit.

    CouldNotCheckError where the gateway does not answer, or never sees what keeps them off.
    """
    gateway = site.stack.gateway
    if gateway is None:
        return 0
    answered(site.beside(gateway, "touch", f"{DRAINED}/{place}"))
    end = time.monotonic() + limit_s
    while True:
        nodes = json.loads(fetch(partial(site.beside, gateway), f"{gateway.url}/health"))["nodes"]
        node = next((node for node in nodes if node["place"] == place), None)
        if node is None or (node["drained"] and not node["running"]):
            return 0
        if time.monotonic() >= end:
            return max(1, int(node["running"]))
        time.sleep(POLL_S)
