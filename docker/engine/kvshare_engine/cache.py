"""Start the cache server of a node with SHARING=multiprocess: it keeps KV, and reads what its peers keep."""

from __future__ import annotations

import os
import shutil
from typing import Any

from kvshare_engine import cluster_key, fingerprint, transport
from kvshare_engine.environment import LMCACHE_CONFIG, NIXL_DIR, Cache, Coordinator, refuse

LOOPBACK = "127.0.0.1"
HEARTBEAT_S = 1
GIB = 1 << 30
ALIGN_BYTES = 65536  # of each object, which a peer reads as a whole
SHARED_MEMORY = "kvshare"  # the pool's name in the room that the cache server shares with its vLLM


def size_gib(cache: Cache) -> float:
    """What all ranks of a node keep: with a GPU as configs/lmcache.yaml says it of a rank.

    In whole ALIGN_BYTES, without which NIXL takes no pool.
    """
    of_a_rank = cache.cpu_cache_gib if cache.device == "cpu" else float(settings()["max_local_cpu_size"])
    return int(of_a_rank * cache.ranks * GIB // ALIGN_BYTES) * ALIGN_BYTES / GIB


def settings() -> dict[str, Any]:
    return fingerprint.lmcache_settings(LMCACHE_CONFIG, os.environ)


def command(cache: Cache, coordinator: Coordinator, size: float, chunk_size: int, wait_s: float) -> list[str]:
    """LMCache's command line.

    Args:
        size: GiB of shared memory.
        wait_s: for a peer's answer, and again for its KV.
    """
    return [
        "lmcache",
        "server",
        f"--host={cache.host}",
        f"--port={cache.port}",
        f"--http-host={cache.host}",
        f"--http-port={cache.http_port}",
        f"--chunk-size={chunk_size}",
        f"--l1-size-gb={size!r}",
        "--no-l1-use-lazy",  # all of it is shared memory, which NIXL registers once
        "--eviction-policy=LRU",
        f"--l1-align-bytes={ALIGN_BYTES}",
        f"--shm-name={SHARED_MEMORY}",
        f"--supported-transfer-mode={cache.transfer}",
        f"--coordinator-url={coordinator.url}",
        f"--coordinator-advertise-ip={cache.host}",
        f"--coordinator-heartbeat-interval={HEARTBEAT_S}",
        f"--p2p-advertise-url={cache.host}:{cache.p2p_port}",
        f"--p2p-lookup-timeout={wait_s:g}",
        f"--p2p-load-timeout={wait_s:g}",
        "--l2-prefetch-policy=retain",  # what was pulled once is a local hit the next time
        "--worker-reap-timeout-seconds=0",  # an idle vLLM is no dead one
    ]


def key_of(cache: Cache) -> dict[str, str]:
    """The cluster's key as LMCache wants it; ends the container where others could reach it without one."""
    key = cluster_key.environment()
    if not key and cache.host != LOOPBACK:
        refuse(
            f"expected a cluster key for SHARING=multiprocess on {cache.host} and found none, without which "
            "whoever reaches its ports reads and clears KV; set CLUSTER_KEY, or start it with make up"
        )
    return key


def run() -> None:
    cache, coordinator = Cache.from_environment(), Coordinator.from_environment()
    key = key_of(cache)
    shutil.rmtree(NIXL_DIR, ignore_errors=True)
    NIXL_DIR.parent.mkdir(parents=True, exist_ok=True)
    defaults = {
        **transport.nixl_environment(cache.nixl_port),
        **transport.environment(cache.transport, cache.device, cache.host),
        **key,
    }
    os.environ.update({name: value for name, value in defaults.items() if not os.environ.get(name)})
    fingerprint.write(fingerprint.of_cache(os.environ["KVSHARE_ROLE"], cache))
    chosen = settings()
    wait_s = int(chosen["lookup_timeout_ms"]) / 1000
    arguments = command(cache, coordinator, size_gib(cache), int(chosen["chunk_size"]), wait_s)
    os.execvp(arguments[0], arguments)
