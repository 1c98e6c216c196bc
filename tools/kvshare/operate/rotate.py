"""`kvshare key rotate`: another cluster key, node by node, behind a gateway that always has a server left."""

import json
import time
from collections.abc import Sequence
from functools import partial

from kvshare.config import cluster_key
from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.operate.down import stop_members
from kvshare.operate.up import wait_until_healthy
from kvshare.progress import step
from kvshare.site import compose
from kvshare.site.base import fetch
from kvshare.site.containers import Containers
from kvshare.stack.members import Member, Server, Stack, by_context

POLL_S = 1.0


def rotate(settings: Settings, stack: Stack, timeout_s: float) -> None:
    """Make another key, and every node anew with it: decode nodes one by one, then prefill and controller.

    With the controller goes what watches, which asks it.

    A node that has the new key and one that still has the old share nothing with each other meanwhile, and
    compute instead. A server is stopped once it has answered what the gateway sent it.

    Raises:
        KvshareError: without a key to rotate or a gateway in front, or where a node does not come back.
        CouldNotCheckError: if an engine does not answer.
    """
    if not settings.cluster_key or not settings.cluster_key_file.is_file():
        raise KvshareError(
            f"the nodes have no cluster key in a file to rotate: see {cluster_key.NAME} in .env, "
            "and make up makes one."
        )
    gateway = (stack.gateway,) if stack.gateway else ()
    served = (*stack.decodes, stack.prefill, *stack.caches, stack.controller, *gateway)
    everything = Containers(stack, settings, (*served, *stack.watchers))
    watchers = tuple(one for one in stack.watchers if one.name in everything.found)
    missing = [member.name for member in served if not _healthy(everything, member)]
    if stack.gateway is None or missing:
        names = ", ".join(missing) or "gateway"
        raise KvshareError(
            f"expected every node healthy and a gateway before them, found {names} not so: "
            "type make up first."
        )
    cluster_key.replace(settings.cluster_key_file)
    for decode in stack.decodes:
        _anew(settings, stack, _node(decode))
        # Its health check waits for a controller that has the old key yet.
        _wait_until_the_gateway_uses(everything, f"{decode.host}:{decode.api_port}", timeout_s)
    _anew(settings, stack, (*_node(stack.prefill), stack.controller, *watchers))
    wait_until_healthy(Containers(stack, settings, (*served, *watchers)), timeout_s)


def _node(server: Server) -> tuple[Member, ...]:
    """A server, and the cache server beside it, which is to stop after it."""
    return (server, server.cache) if server.cache else (server,)


def _healthy(site: Containers, member: Member) -> bool:
    return member.name in site.found and site.found[member.name].is_healthy


def _anew(settings: Settings, stack: Stack, members: Sequence[Member]) -> None:
    stop_members(settings, stack, members)
    for context, services in by_context(reversed(members)).items():
        with step(f"Start {', '.join(services)} on context {context} with the new key"):
            compose.run(settings, context, "up", "--detach", "--no-build", "--no-deps", *services)


def _wait_until_the_gateway_uses(site: Containers, place: str, timeout_s: float) -> None:
    gateway = site.stack.gateway
    assert gateway is not None
    end = time.monotonic() + timeout_s
    with step(f"Wait until the gateway uses {place} again"):
        while time.monotonic() < end:
            try:
                nodes = json.loads(fetch(partial(site.beside, gateway), f"{gateway.url}/health"))["nodes"]
            except CouldNotCheckError:
                nodes = []
            if any(node["place"] == place and node["up"] and not node["drained"] for node in nodes):
                return
            time.sleep(POLL_S)
    raise KvshareError(
        f"the server at {place} did not come back within {timeout_s:.0f} s: see make logs; "
        "make down and make up give every node the new key."
    )
