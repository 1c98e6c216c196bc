"""`kvshare status`: each member, where it runs, how it is, and what the controller knows of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console

from kvshare.checking.rendering import table
from kvshare.errors import CouldNotCheckError
from kvshare.site.base import Site, State, fingerprint_of, told
from kvshare.site.containers import Containers
from kvshare.site.contexts import seconds_of
from kvshare.stack.members import Cache, Member, Server

PIPE_WIDTH = 200
HEADINGS = ("node", "host", "context", "state", "health", "up", "image id", "registered", "keys")
ABSENT, UNKNOWN = "absent", "unknown"


@dataclass(frozen=True)
class ServiceStatus:
    """One member of the stack; None is what nobody could tell, or does not apply.

    ``state`` is `absent` where the context has no container of it, `unknown` where no engine
    answers.
    ``registered`` says whether the controller lists its LMCache workers, ``keys`` how many chunks of them;
    ``missing_ranks`` those whose worker is not listed; ``other_key`` why: its cluster key is another
    than the controller's.
    """

    node: str
    context: str
    host: str
    state: str
    health: str = ""
    uptime_s: int | None = None
    image: str | None = None
    image_id: str | None = None
    registered: bool | None = None
    keys: int | None = None
    missing_ranks: tuple[int, ...] = ()
    other_key: bool = False
    error: str | None = None

    @property
    def is_well(self) -> bool:
        """Healthy, and not known to be missing at the controller."""
        return self.state == "running" and self.health == "healthy" and self.registered is not False


def status(site: Containers) -> tuple[ServiceStatus, ...]:
    """Return how each member was at the last look, for which a silent engine is not waited again.

    An engine or a controller that does not answer leaves gaps, and says why.
    """
    found = site.found
    keys = _keys(site, found)
    return tuple(_status(site, member, found.get(member.name), keys) for member in site.stack.members)


def _status(
    site: Site, member: Member, found: State | None, keys: dict[str, dict[int, int]] | None
) -> ServiceStatus:
    place = (member.name, member.context, member.host)
    if member.context in site.silent:
        return ServiceStatus(*place, UNKNOWN, error=site.silent[member.context].message)
    if found is None:
        return ServiceStatus(*place, ABSENT)
    known = None if keys is None or member.name not in keys else keys[member.name]
    missing = () if known is None else tuple(rank for rank in range(_ranks(member)) if rank not in known)
    return ServiceStatus(
        *place,
        state=found.status,
        health=found.health,
        uptime_s=_uptime_s(found.described["State"]),
        image=found.described["Config"]["Image"],
        image_id=found.image_id,
        registered=None if known is None else not missing,
        keys=sum(known.values()) if known else None,
        missing_ranks=missing,
        other_key=bool(missing) and _has_another_key(site, member),
    )


def _has_another_key(site: Site, member: Member) -> bool:
    """Return whether a member has another cluster key than the controller; not where either does not say."""
    try:
        own, controllers = (
            fingerprint_of(site.fingerprint(one)).cluster_key for one in (member, site.stack.controller)
        )
    except (CouldNotCheckError, ValueError):
        return False
    return own != controllers


def _ranks(member: Member) -> int:
    if isinstance(member, Cache):
        return 1
    return member.ranks if isinstance(member, Server) else 0


def _uptime_s(state: Mapping[str, Any], now: datetime | None = None) -> int | None:
    """Return whole seconds since the start by this machine's clock, or None of what does not run."""
    if state["Status"] != "running":
        return None
    return max(0, int((now or datetime.now(UTC)).timestamp() - seconds_of(state["StartedAt"])))


def _keys(site: Site, found: Mapping[str, State]) -> dict[str, dict[int, int]] | None:
    """Return the number of keys by who keeps KV and by rank; None if nobody tells.

    The controller tells it of every server; cache servers each of itself, all ranks in one, and those that
    the coordinator does not list have none.
    """
    stack = site.stack
    running = {name for name, state in found.items() if state.status == "running"}
    try:
        if stack.caches:
            return {cache.name: _kept(site, cache) for cache in stack.caches if cache.name in running}
        return _registered_keys(site) if stack.controller.name in running else None
    except (CouldNotCheckError, ValueError, LookupError, TypeError):
        return None


def _registered_keys(site: Site) -> dict[str, dict[int, int]]:
    counted: dict[str, dict[int, int]] = {server.name: {} for server in site.stack.servers}
    names = {server.instance: server.name for server in site.stack.servers}
    for worker in json.loads(told(site, site.stack.controller, "/controller/workers"))["workers"]:
        if name := names.get(str(worker["instance_id"])):
            counted[name][int(worker.get("worker_id", 0))] = int(worker["key_count"])
    return counted


def _kept(site: Site, cache: Cache) -> dict[int, int]:
    status = json.loads(told(site, cache, "/status"))
    kept = status["storage_manager"]["l1_managers"].values()
    registered = status["p2p_state"] == "registered"
    return {0: sum(int(one["total_object_count"]) for one in kept)} if registered else {}


def print_table(rows: Sequence[ServiceStatus], stream: TextIO) -> None:
    """Print a table for people."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    shown = table(HEADINGS[:-1], HEADINGS[-1:])
    for row in rows:
        shown.add_row(*cells(row))
    console.print(shown)


def cells(row: ServiceStatus) -> tuple[str, ...]:
    """Return a member in words, under ``HEADINGS``."""
    return (
        row.node,
        row.host,
        row.context,
        row.state,
        row.health,
        "" if row.uptime_s is None else duration(row.uptime_s),
        (row.image_id or "").removeprefix("sha256:")[:12],
        _registered(row),
        "" if row.keys is None else str(row.keys),
    )


def _registered(row: ServiceStatus) -> str:
    if row.registered is not False:
        return "" if row.registered is None else "yes"
    if row.other_key:
        return "no: another cluster key"
    return "no" if row.keys is None else f"rank {', '.join(map(str, row.missing_ranks))} is not"


def duration(seconds: int) -> str:
    """Return a duration in its two largest units, such as ``3 h 12 min``."""
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // small} {smaller}"
    return f"{seconds} s"


def unreachable(rows: Sequence[ServiceStatus]) -> tuple[str, ...]:
    """Return the sentence of each engine that did not answer, once."""
    return tuple(dict.fromkeys(row.error for row in rows if row.error is not None))
