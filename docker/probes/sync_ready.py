"""Probe of sync-ready: a command that comes before there is a cache is left to the next heartbeat."""

from __future__ import annotations

from multiprocessing.connection import Connection
from types import SimpleNamespace

from probes import ProbeError
from probes.forks import Fork

ANSWERED_WITHIN_S = 60.0


def probe() -> None:
    """Raises ProbeError unless a worker carries a command out once it has a cache, and not before."""
    worker = Fork(_obey)
    try:
        found = worker.answer(ANSWERED_WITHIN_S)
    finally:
        worker.kill()
    if found != [0, 1]:
        raise ProbeError(f"A worker should carry out 0 commands without a cache and then 1, not {found}.")


def _obey(connection: Connection) -> None:
    """Say how many commands a worker has carried out: without a cache, and with one."""
    from lmcache.v1.cache_controller.worker import LMCacheWorker

    executed: list[object] = []
    counts = []
    command = SimpleNamespace(describe=lambda: "full sync", execute=executed.append)
    answer = SimpleNamespace(has_commands=lambda: True, commands=[command])
    worker = SimpleNamespace(lmcache_engine=SimpleNamespace())
    for cache in (None, "made"):
        worker.lmcache_engine.storage_manager = cache
        LMCacheWorker._handle_heartbeat_commands(worker, answer)
        counts.append(len(executed))
    connection.send(counts)
