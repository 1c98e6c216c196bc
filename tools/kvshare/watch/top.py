"""`kvshare top`: what a stack does now, from two looks at its metrics."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from prometheus_client.samples import Sample
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvshare.errors import CouldNotCheckError
from kvshare.servers import metrics
from kvshare.servers.metrics import PROMPT_TOKENS, PULLED, total
from kvshare.servers.multiprocess import PULLED as MP_PULLED
from kvshare.servers.prompts import DEFAULT_CHUNK_SIZE
from kvshare.servers.sharing import address_of
from kvshare.site.base import Site, State, at_once, told
from kvshare.stack.members import Member, Stack

TEXTS = ("node", "health")
# Tokens of prompts a second by where their KV came from; what a node sent to peers; what runs there.
NUMBERS = (
    *("computed/s", "own prefix cache/s", "LMCache own or peer's/s"),
    *("sent/s", "MB/s", "pulls/s", "ms each"),
    *("running", "waiting", "KV memory"),
)
NOTHING = ""
MP_USED = "lmcache_mp_l1_usage_ratio"  # of a cache server's memory


@dataclass(frozen=True)
class Look:
    """A stack at one moment; ``at`` in seconds of a monotonic clock.

    Attributes:
        samples: what each member says on /metrics; of one that does not answer, nothing.
        states: how its engine says that each is.
    """

    at: float
    samples: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    states: Mapping[str, State] = field(default_factory=dict)

    def total(self, node: str, name: str, /, **labels: str) -> float | None:
        """Return the sum of a node's samples of a name, or None if there are none."""
        return total(self.samples.get(node, ()), name, **labels)


def look(site: Site) -> Look:
    """Ask every member that runs."""
    states = site.look()
    members = {m.name: m for m in site.stack.members if m.name in states and m.service != "prometheus"}
    found, _ = at_once(lambda name: _samples(site, members[name]), members)
    return Look(time.monotonic(), found, states)


def frame(stack: Stack, before: Look, now: Look) -> RenderableType:
    """Return what happened between two looks, to be shown."""
    table = Table(box=None, pad_edge=False)
    for heading in TEXTS:
        table.add_column(heading, no_wrap=True)
    for heading in NUMBERS:
        table.add_column(heading, justify="right")
    numbers = {name: cells for name, *cells in grid(stack, before, now)}
    for member in stack.members:
        health = _health(now.states.get(member.name))
        table.add_row(member.name, health, *numbers.get(member.name, ()))
    return Group(table, Text(), *map(Text, lines(stack, before, now)))


def grid(stack: Stack, before: Look, now: Look) -> list[tuple[str, ...]]:
    """Return each name with ``NUMBERS`` between two looks; of a cache server the last alone."""
    rows = [(server.name, *_server(before, now, server.name)) for server in stack.servers]
    nothing = [NOTHING] * (len(NUMBERS) - 1)
    return rows + [(cache.name, *nothing, _share(now.total(cache.name, MP_USED))) for cache in stack.caches]


def lines(stack: Stack, before: Look, now: Look) -> tuple[str, ...]:
    """Return who pulled from whom between two looks, what the controller knows, and how canaries ended."""
    known = _coordinator(now) if stack.controller.is_coordinator else _workers(now)
    return (*_pairs(stack, before, now), *known, *_canaries(stack, now))


def _samples(site: Site, member: Member) -> tuple[Sample, ...]:
    try:
        return metrics.parse(told(site, member, "/metrics"))
    except ValueError:
        raise CouldNotCheckError(f"{member.url}/metrics is no Prometheus text.") from None


def _health(state: State | None) -> Text:
    if state is None:
        return Text("absent", "red")
    said = state.health or state.status
    return Text(said, "green" if state.is_healthy else "red")


def _server(before: Look, now: Look, node: str) -> Iterator[str]:
    """Yield the numbers of a server; nothing where it does not say."""
    seconds = max(now.at - before.at, 1e-9)

    def rise(name: str, **labels: str) -> float | None:
        then, value = before.total(node, name, **labels), now.total(node, name, **labels)
        # Below zero it was started anew.
        return None if then is None or value is None else max(0.0, value - then)

    def rate(value: float | None) -> str:
        return NOTHING if value is None else f"{value / seconds:,.0f}"

    for source in ("local_compute", "local_cache_hit", "external_kv_transfer"):
        yield rate(rise(PROMPT_TOKENS, source=source))
    pulls, spent, speed = (
        rise(f"lmcache:p2p_{name}")
        for name in ("time_to_transfer_count", "time_to_transfer_sum", "transfer_speed_sum")
    )
    sent = speed / pulls * spent if pulls and spent and speed else pulls and 0.0
    yield rate(sent)
    token = _token_bytes(now, node)
    yield NOTHING if sent is None or token is None else f"{sent * token / seconds / 1e6:,.1f}"
    yield NOTHING if pulls is None else f"{pulls / seconds:,.1f}"
    yield f"{spent / pulls * 1000:,.0f}" if pulls and spent else NOTHING
    for name in ("running", "waiting"):
        yield _whole(now.total(node, f"vllm:num_requests_{name}"))
    yield _share(now.total(node, "vllm:kv_cache_usage_perc"))


def _token_bytes(now: Look, node: str) -> float | None:
    """Return the bytes of a token's KV at one rank, from what LMCache keeps in whole chunks."""
    used, chunks = (
        now.total(node, "lmcache:local_cache_usage"),
        now.total(node, "lmcache:active_memory_objs_count"),
    )
    return used / chunks / DEFAULT_CHUNK_SIZE if used and chunks else None


def _pairs(stack: Stack, before: Look, now: Look) -> Iterator[str]:
    """Say what each that answered twice pulled from each that it has ever pulled from."""
    keepers = _keepers(stack)
    counter = MP_PULLED if stack.caches else PULLED
    seconds = max(now.at - before.at, 1e-9)
    for puller, owner in permutations(keepers, 2):
        counts = [
            (moment.total(puller, counter, peer=url) for moment in (before, now)) for url in keepers[owner]
        ]
        ranks = [(then or 0.0, value) for then, value in counts if value is not None]
        if ranks and puller in before.samples:
            rise = sum(max(0.0, value - then) for then, value in ranks)
            yield f"{puller} pulls {rise / seconds / 1e6:,.1f} MB/s from {owner}"


def _keepers(stack: Stack) -> dict[str, tuple[str, ...]]:
    """Return where peers read the KV of each that keeps some, by its name."""
    return {
        server.keeper.name: (address_of(server),) if server.cache else server.peer_init_urls
        for server in stack.servers
    }


def _workers(now: Look) -> Sequence[str]:
    """Say what the controller knows."""
    name = "lmcache:cache_controller"
    workers, keys = (
        now.total("controller", f"{name}_{what}")
        for what in ("registered_workers_count", "kv_pool_keys_count")
    )
    if workers is None:
        return ("the controller does not answer",)
    syncing = now.total("controller", f"{name}_full_sync_workers_syncing") or 0
    knows = f"{workers:.0f} workers, {syncing:.0f} of them not synced, and {keys or 0:,.0f} chunks"
    return (f"the controller knows {knows}",)


def _coordinator(now: Look) -> Sequence[str]:
    """Say whether the coordinator answers; it knows of no KV."""
    return () if "coordinator" in now.samples else ("the coordinator does not answer",)


def _canaries(stack: Stack, now: Look) -> Iterator[str]:
    """Say how the last canary of each decode node ended; nothing without one."""
    ended = {
        sample.labels["node"]: sample.labels["state"]
        for sample in now.samples.get("canary", ())
        if sample.name == "kvshare_canary_state" and sample.value
    }
    for decode in stack.decodes:
        if decode.name in ended:
            times = (
                f"{kv} in {seconds * 1000:,.0f} ms"
                for kv in ("pulled", "computed")
                if (seconds := now.total("canary", "kvshare_canary_ttft_seconds", node=decode.name, kv=kv))
                is not None
            )
            yield f"canary of {decode.name}: {', '.join((ended[decode.name], *times))}"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}"


def _whole(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}"
