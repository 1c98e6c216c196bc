"""What two servers share KV by: whom to ask where it is, and what says that some of it moved.

A module for each way: `controller` and `multiprocess`. Legs, ledger and checks do not know which it is.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from kvshare.config.keys import Keys
from kvshare.servers import controller, multiprocess
from kvshare.servers.controller import ControllerClient
from kvshare.servers.multiprocess import CacheClient, CacheServers
from kvshare.servers.prompts import Prompt
from kvshare.servers.readings import Admission, ControllerProbe, Mark, PullSample, Reading, Told
from kvshare.servers.server import FLUSH_S, ServerClient
from kvshare.servers.wait import poll
from kvshare.stack.members import Server, Stack

EXPORT_DEADLINE_S = 25.0


class Task(Protocol):
    """What a task tells of the pair that it is about."""

    @property
    def prefill(self) -> str:
        """Where prefill answers."""

    @property
    def decode(self) -> str:
        """Where decode answers."""

    @property
    def controller(self) -> str:
        """Where the controller answers, or the coordinator."""

    @property
    def owner(self) -> str:
        """Prefill's name in what they share KV by."""

    @property
    def ranks(self) -> int:
        """Of each server."""

    @property
    def caches(self) -> Mapping[str, str]:
        """Where the cache servers answer, by node; none where LMCache is within vLLM."""


class Sharing(Protocol):
    """Who knows of the KV that prefill holds, and tells what of it moved."""

    unheard: str  # what it means, in a sentence, that nothing was admitted

    def await_workers(self, instances: Collection[str], wait_s: float) -> ControllerProbe:
        """Return whom it lists as soon as all of these are there, or at the deadline."""

    def mark(self) -> Mark:
        """Return how far it is, for a later ``await_admission``."""

    def await_admission(
        self, prompts: Sequence[Prompt], before: Mark, deadline_s: float, number: int = 0
    ) -> Admission:
        """Wait until decode can find the prompts' chunks at the owner; ``number`` is what to call them."""

    def pull_sample(self) -> PullSample | None:
        """Return the state of the socket that it hears of KV by, or None if there is none to be seen."""

    def pulled(self) -> dict[str, float] | None:
        """Return the bytes that decode took so far, by peer; None where that is not told."""

    def told(self, owner: Reading, puller: Reading, pulls: int, tokens: int) -> bool:
        """Whether LMCache has exported what decode pulled, by how prefill's and decode's counters rose."""


def told_of(stack: Stack) -> Told:
    """Return where what a stack shares KV by tells what moved."""
    return multiprocess.TOLD if stack.controller.is_coordinator else controller.TOLD


def mover_of(pair: Stack) -> Server:
    """Return the server of a pair whose NIXL counts what is moved."""
    return pair.decode if told_of(pair).mover == "decode" else pair.prefill


def address_of(server: Server) -> str:
    """Return a server's name in what the servers share KV by: an instance, or where peers read its KV."""
    return f"{server.cache.host}:{server.cache.p2p_port}" if server.cache else server.instance


def caches_of(pair: Stack) -> dict[str, str]:
    """Return where the cache servers of a pair answer, by node; none where LMCache is within vLLM."""
    return {server.service: server.cache.url for server in (pair.prefill, pair.decode) if server.cache}


def sharing_of(task: Task, chunk_size: int, keys: Keys) -> Sharing:
    """Return what a pair shares KV by."""
    if task.caches:
        return CacheServers(task.controller, task.caches, chunk_size, task.ranks, keys.controller)
    return ControllerClient(task.controller, task.owner, chunk_size, task.ranks, keys.controller)


def servers_of(task: Task, keys: Keys) -> dict[str, ServerClient]:
    """Return both servers by node; what they count is theirs and their LMCache's."""

    def server(node: str, url: str) -> ServerClient:
        cache = task.caches.get(node)
        return ServerClient(url, keys.api, CacheClient(cache, keys.controller) if cache else None)

    return {node: server(node, url) for node, url in (("prefill", task.prefill), ("decode", task.decode))}


def read_settled(servers: Mapping[str, ServerClient]) -> dict[str, Reading | None]:
    """Return the servers' counters once LMCache has exported what they did for earlier requests.

    Else it would count as a later one's: vLLM tells its counters at once, LMCache a little later.
    """
    readings = {node: server.read() for node, server in servers.items()}
    if not any(now and now.sources and now.sources.total for now in readings.values()):
        return readings
    time.sleep(FLUSH_S)
    return {node: server.read() for node, server in servers.items()}


def await_export(
    sharing: Sharing,
    servers: Mapping[str, ServerClient],
    since: Mapping[str, Reading | None],
    pulls: int,
    tokens: int,
) -> tuple[Reading, Reading] | None:
    """Return how the counters of prefill and decode rose since, once LMCache has exported what decode pulled.

    None where one of them does not tell.
    """
    owner, puller = since.get("prefill"), since.get("decode")
    if owner is None or puller is None:
        return None

    def rises() -> tuple[Reading, Reading] | None:
        owner_now, puller_now = servers["prefill"].read(), servers["decode"].read()
        return None if owner_now is None or puller_now is None else (owner_now - owner, puller_now - puller)

    return poll(rises, lambda found: found is None or sharing.told(*found, pulls, tokens), EXPORT_DEADLINE_S)
