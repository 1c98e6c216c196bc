"""A cache server of the multiprocess mode for probes: memory, peers and ports, without HTTP or an engine.

It is a process of its own that obeys commands, methods of ``_Inside``. What stands in for an engine keeps and
prefetches objects of a page each; what stands in for the coordinator names the peers.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

from probes.controller import free_ports
from probes.forks import Fork, pause
from probes.node import rejected

PAGE = 4096  # bytes; an object of a prompt
LOAD_TIMEOUT_S = 1.0
LOOKUP_TIMEOUT_S = 3.0
LATE_S = 60.0


@dataclass(frozen=True)
class Place:
    """Where a cache server listens, and the size of its memory."""

    requests: int
    transfers: int
    pages: int = 64
    key_file: str = ""  # of the cluster

    @property
    def transfer_url(self) -> str:
        return f"127.0.0.1:{self.transfers}"


class CacheNode:
    """A running cache server."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.fork = Fork(_obey, place)

    def ask(self, command: str, **arguments: Any) -> Any:
        """The server's answer to one command; raises ProbeError if it has died."""
        return self.fork.ask(command, arguments, "A cache server")


def place_for(**changes: Any) -> Place:
    ports = free_ports()
    return Place(**{"requests": ports.http, "transfers": ports.pull, **changes})


@contextlib.contextmanager
def running_cache(place: Place) -> Iterator[CacheNode]:
    """A cache server that has started, killed on leaving."""
    node = CacheNode(place)
    try:
        node.ask("start")
        yield node
    finally:
        node.fork.kill()


class _Inside:
    """The server itself."""

    def __init__(self, place: Place) -> None:
        from lmcache.v1.distributed.config import (
            EvictionConfig,
            L1ManagerConfig,
            L1MemoryManagerConfig,
            StorageManagerConfig,
        )
        from lmcache.v1.distributed.storage_manager import StorageManager
        from lmcache.v1.distributed.transfer_channel import initialize_transfer_channel_context
        from lmcache.v1.multiprocess.config import CoordinatorConfig, MPServerConfig, P2PConfig
        from lmcache.v1.multiprocess.modules.p2p_controller import P2PController
        from lmcache.v1.multiprocess.transport.server_factory import create_request_server

        size = place.pages * PAGE
        memory = L1MemoryManagerConfig(
            size_in_bytes=size, use_lazy=False, init_size_in_bytes=size, align_bytes=PAGE
        )
        self.manager = StorageManager(
            StorageManagerConfig(
                l1_manager_config=L1ManagerConfig(
                    memory_config=memory, write_ttl_seconds=600, read_ttl_seconds=300
                ),
                eviction_config=EvictionConfig(eviction_policy="LRU"),
            )
        )
        initialize_transfer_channel_context(
            "nixl",
            self.manager.l1_memory_desc,
            listen_url=place.transfer_url,
            advertise_url=place.transfer_url,
        )
        self.lookups = 0
        look_up = self.manager.submit_prefetch_task

        def count(*arguments: Any, **named: Any) -> Any:
            handle = look_up(*arguments, **named)
            self.lookups += 1
            return handle

        self.manager.submit_prefetch_task = count
        self.controller = P2PController(
            SimpleNamespace(storage_manager=self.manager), P2PConfig(), CoordinatorConfig(), "probe"
        )
        self.server = create_request_server(
            [self.controller],
            MPServerConfig(host="127.0.0.1", port=place.requests, max_cpu_workers=2, max_gpu_workers=2),
        )
        self.server.start()
        self.adapters: dict[int, list[int]] = {}  # of a peer, by its port for requests
        self.written: list[Any] = []  # what the last load writes into

    def start(self) -> str:
        return "started"

    def connect(self, requests: int, transfers: int) -> None:
        """Have a peer, or have it once more."""
        from lmcache.v1.distributed.l2_adapters.p2p_l2_adapter import P2PL2AdapterConfig

        config = P2PL2AdapterConfig(
            f"tcp://127.0.0.1:{requests}",
            f"127.0.0.1:{transfers}",
            lookup_timeout_s=LOOKUP_TIMEOUT_S,
            load_timeout_s=LOAD_TIMEOUT_S,
        )
        self.adapters.setdefault(requests, []).append(self.manager.add_l2_adapter(config))

    def leave(self, requests: int, seconds: float) -> str:
        """Have a peer no longer; "busy" if it cannot be left within that time."""
        oldest = self.adapters[requests][0]
        try:
            self.manager.delete_l2_adapter(oldest, seconds)
        except TimeoutError:
            return "busy"
        self.adapters[requests].remove(oldest)
        return "left"

    def store(self, seed: int, objects: int) -> int:
        """Store a prompt as far as there is room; how many objects of it."""
        for number, key in enumerate(_keys(seed, objects)):
            reserved = self.manager.reserve_write([key], _layout())
            if key not in reserved:
                return number
            reserved[key].tensor.fill_(_value(seed, number))
            self.manager.finish_write([key])
        return objects

    def get(self, seed: int, objects: int) -> dict[str, int]:
        """Prefetch a prompt as a lookup does, and read it: its hits, and how many have other values."""
        keys = _keys(seed, objects)
        handle = self.manager.submit_prefetch_task(_task(keys), external_request_id=f"{time.monotonic_ns()}")
        while (result := self.manager.query_prefetch_status(handle)) is None:
            time.sleep(0.005)
        found = result.hit_cells[0].gather(keys)
        if not found:
            return {"hits": 0, "wrong": 0}
        _, read = self.manager.unsafe_read(found)
        wrong = sum(bool((value.tensor != _value(seed, number)).any()) for number, value in enumerate(read))
        self.manager.finish_read_prefetched(found)
        return {"hits": len(found), "wrong": wrong}

    def stop_before_load(self, requests: int, pid: int) -> None:
        """Stop a peer's process once it has been asked, before anything is read from it."""
        _, adapter = next(
            pair for pair in self.manager.l2_adapters() if pair[0].index == self.adapters[requests][-1]
        )
        begin = adapter.submit_load_task

        def stop_and_load(keys: list[Any], objects: list[Any]) -> Any:
            adapter.submit_load_task = begin
            self.written = [value.tensor for value in objects]
            pause(pid)
            return begin(keys, objects)

        adapter.submit_load_task = stop_and_load

    def is_written(self, seed: int) -> bool:
        """Whether what that load wrote into, whoever's it is now, holds the values of that prompt."""
        return all(bool((tensor == _value(seed, number)).all()) for number, tensor in enumerate(self.written))

    def counted(self, counter: str) -> dict[str, float]:
        """What LMCache has exported of one of its counters, by the value of its label."""
        from prometheus_client import REGISTRY

        samples = [s for metric in REGISTRY.collect() for s in metric.samples if s.name == counter]
        return {"".join(s.labels.values()): s.value for s in samples}

    def rejected(self) -> dict[str, float]:
        """What was turned away, by socket."""
        return rejected()

    def looked_up(self) -> int:
        """How many lookups have taken what they found."""
        return self.lookups

    def drop_abandoned(self) -> None:
        """Take every lookup of a peer that has not been asked about yet for abandoned."""
        from lmcache.v1.multiprocess.modules import p2p_controller

        p2p_controller._ABANDONED_S = 0.0
        self.controller._drop_abandoned()

    def locked(self, seed: int, objects: int) -> int:
        """How many objects of a prompt are kept for whoever reads them."""
        (manager,) = self.manager._l1_by_tag.values()
        states = [manager.get_object_state(key) for key in _keys(seed, objects)]
        return sum(state is not None and state.read_lock.is_locked() for state in states)

    def look_up_and_leave(self, requests: int, seed: int, objects: int) -> None:
        """Have a peer look a prompt up, and never ask what it has found."""
        import zmq
        from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

        client = RequestClientFactory.create(f"tcp://127.0.0.1:{requests}", context=zmq.Context.instance())
        client.p2p_lookup_and_lock(_keys(seed, objects), {0: _layout()}).result(timeout=LATE_S)
        client.close()

    def staged(self) -> int:
        """How many objects are written or read into."""
        managers = self.manager._l1_by_tag.values()
        return sum(int(manager.get_staging_memory_usage()) for manager in managers) // PAGE


def _keys(seed: int, objects: int) -> list[Any]:
    from lmcache.v1.distributed.api import ObjectKey

    return [ObjectKey(ObjectKey.IntHash2Bytes(seed * 1000 + n), "probe", 0) for n in range(objects)]


def _value(seed: int, number: int) -> int:
    return (seed * 31 + number) % 251 + 1


def _layout() -> Any:
    import torch
    from lmcache.v1.distributed.api import MemoryLayoutDesc

    return MemoryLayoutDesc(shapes=[torch.Size([PAGE])], dtypes=[torch.uint8])


def _task(keys: list[Any]) -> Any:
    from lmcache.v1.distributed.api import GroupedObjectKeys, PrefetchTaskSpec

    return PrefetchTaskSpec(
        key_groups=[GroupedObjectKeys(keys=keys, object_group_id=0, layout_desc=_layout())]
    )


def _obey(connection: Connection, place: Place) -> None:
    os.environ["KVSHARE_CLUSTER_KEY_FILE"] = place.key_file
    inside = _Inside(place)
    with contextlib.suppress(EOFError):
        while True:
            command, arguments = connection.recv()
            connection.send(getattr(inside, command)(**arguments))
