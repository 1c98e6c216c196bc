"""A node for probes: LMCache's engine, worker, P2P backend over NIXL and lookup client, without vLLM.

It is a process of its own that obeys commands, methods of ``_Inside``. What stands in for vLLM is the cache
that tokens are stored from and retrieved into, and the order of the scheduler's calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from probes import ProbeError
from probes.controller import Ports, free_ports, get, running_controller
from probes.forks import Fork

CHUNK = 16
LOOKUP_TIMEOUT_MS = 3000
TOLERANCE_S = 2.0
HEARTBEAT_S = 1
ENGINE_REST_S = 0.001  # of vLLM's engine, between two steps in which nothing runs


@dataclass(frozen=True)
class Settings:
    """Where a node listens, and the controller's ports."""

    instance: str
    pull: int
    reply: int
    worker_port: int
    init_port: int
    lookup_port: int
    host: str = "127.0.0.1"
    pages: int = 256
    lanes: int = 1
    chunk: int = CHUNK  # tokens
    width: int = 8  # values of a token's keys, and as many of its values; 4 bytes each
    extra: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    key_file: str = ""  # of the cluster

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk's KV."""
        return self.chunk * self.width * 2 * 4


class Node:
    """A running node."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fork = Fork(_obey, settings)

    def ask(self, command: str, **arguments: Any) -> Any:
        """The node's answer to one command; raises ProbeError if it has died."""
        return self.fork.ask(command, arguments, f"Node {self.settings.instance}")

    def pull_until_hit(self, seed: int, chunks: int, seconds: float = 10.0) -> dict[str, Any]:
        """The answer of the first of some gets that hits: the controller learns of keys a moment later."""
        return self.pull_until(seed, chunks, 1, seconds)

    def pull_until(self, seed: int, chunks: int, hits: int, seconds: float = 10.0) -> dict[str, Any]:
        """The answer of the first of some gets that brings so many tokens, or of the last."""
        deadline = time.monotonic() + seconds
        for number in itertools.count():
            found: dict[str, Any] = self.ask(
                "get", seed=seed, chunks=chunks, request=f"{time.monotonic_ns()}-{number}"
            )
            if found["hits"] >= hits or time.monotonic() > deadline:
                return found
            time.sleep(0.3)
        raise AssertionError

    def get(self, seed: int, chunks: int) -> dict[str, Any]:
        """The answer of one get, which must be over in time and bring right values; raises ProbeError."""
        found: dict[str, Any] = self.ask(
            "get", seed=seed, chunks=chunks, request=f"{time.monotonic_ns()}-once"
        )
        if found["seconds"] > LOOKUP_TIMEOUT_MS / 1000 + TOLERANCE_S or found["wrong"]:
            raise ProbeError(
                f"A lookup of node {self.settings.instance} should be over within {LOOKUP_TIMEOUT_MS} ms, "
                f"and what it brings right: {found}."
            )
        return found

    def wait_until_synced(self, controller: Ports, seconds: float = 30.0) -> None:
        """Wait until the controller calls the node synchronised, so that nothing it stores is lost.

        An unpatched controller never says so: after its freeze it should be.
        """
        deadline = time.monotonic() + seconds
        own = self.settings
        while not synced_workers(controller, own.key_file).get(own.instance, (False, 0))[0]:
            if time.monotonic() > deadline:
                return
            time.sleep(0.2)

    def logged(self, text: str) -> int:
        """How often ``text`` stands in the node's log."""
        return self.fork.logged().count(text)


def synced_workers(controller: Ports, key_file: str = "") -> dict[str, tuple[bool, int]]:
    """Of each instance whether the controller calls it synchronised, and the number of its keys."""
    with get(controller.http, "/controller/workers", key_file) as answer:
        workers = json.load(answer)["workers"]
    return {w["instance_id"]: (w.get("synced", False), w["key_count"]) for w in workers}


def settings_for(instance: str, controller: Ports, **changes: Any) -> Settings:
    ports = free_ports()
    return Settings(
        **{
            "instance": instance,
            "pull": controller.pull,
            "reply": controller.reply,
            "worker_port": ports.http,
            "init_port": ports.pull,
            "lookup_port": ports.reply,
            **changes,
        }
    )


@contextlib.contextmanager
def running_node(settings: Settings) -> Iterator[Node]:
    """A node that has started, killed on leaving."""
    node = Node(settings)
    try:
        node.ask("start")
        yield node
    finally:
        node.fork.kill()


@contextlib.contextmanager
def two_nodes(**changes: Any) -> Iterator[tuple[Ports, Node, Node]]:
    """A controller and two nodes: what the first stores, the second, of changed settings, can pull."""
    ports = free_ports()
    with (
        running_controller(ports),
        running_node(settings_for("a", ports)) as first,
        running_node(settings_for("b", ports, **changes)) as second,
    ):
        first.wait_until_synced(ports)
        yield ports, first, second


def config_of(settings: Settings) -> dict[str, Any]:
    return {
        "chunk_size": settings.chunk,
        "local_cpu": True,
        "max_local_cpu_size": settings.pages * settings.chunk_bytes / 1024**3,
        "enable_async_loading": True,
        "enable_p2p": True,
        "p2p_host": settings.host,
        "p2p_init_ports": [settings.init_port],
        "p2p_lookup_ports": [settings.lookup_port],
        "transfer_channel": "nixl",
        "enable_controller": True,
        "lmcache_instance_id": settings.instance,
        "controller_pull_url": f"127.0.0.1:{settings.pull}",
        "controller_reply_url": f"127.0.0.1:{settings.reply}",
        "lmcache_worker_ports": [settings.worker_port],
        "lmcache_worker_heartbeat_delay_time": HEARTBEAT_S,
        "lmcache_worker_heartbeat_time": HEARTBEAT_S,
        "lookup_timeout_ms": LOOKUP_TIMEOUT_MS,
        "save_unfull_chunk": False,
        "extra_config": settings.extra,
        **settings.config,
    }


def rejected() -> dict[str, float]:
    """How many messages this process has turned away, by socket."""
    from lmcache.v1.rejected_messages import REJECTED

    samples = [sample for metric in REJECTED.collect() for sample in metric.samples]
    return {s.labels["socket"]: s.value for s in samples if s.name.endswith("_total")}


class _Inside:
    """The node itself."""

    def __init__(self, settings: Settings) -> None:
        import torch
        from lmcache.v1.cache_engine import LMCacheEngineBuilder
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.lookup_client.lmcache_async_lookup_client import (
            LMCacheAsyncLookupClient,
            LMCacheAsyncLookupServer,
        )
        from lmcache.v1.metadata import LMCacheMetadata

        config = LMCacheEngineConfig.from_dict(config_of(settings))
        metadata = LMCacheMetadata(
            model_name="kvshare-probe",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.float32,
            kv_shape=(1, 2, settings.chunk, 1, settings.width),
            role="worker",
            chunk_size=settings.chunk,
            engine_id=f"{settings.instance}-{os.getpid()}",
        )
        self.settings = settings
        self.cache = torch.zeros(2, 1, 64 * settings.chunk, settings.width)
        self.engine = LMCacheEngineBuilder.get_or_create(
            settings.instance, config, metadata, _Connector(self.cache), _nothing, _nothing
        )
        self.engine.post_init(async_lookup_server=LMCacheAsyncLookupServer(self.engine, metadata))
        self.client = LMCacheAsyncLookupClient(config, metadata)
        self.allocator = self.engine.storage_manager.local_cpu_backend.memory_allocator.cpu_allocator

    def start(self) -> str:
        return "started"

    def store(self, seed: int, chunks: int) -> int:
        """Compute and store a prompt, which its seed names."""
        tokens, values = self._prompt(seed, chunks)
        self.cache[:, :, : len(tokens)] = values
        self.engine.store(tokens, req_id=f"store-{seed}")
        return len(tokens)

    def get(self, seed: int, chunks: int, request: str, computed: int = 0) -> dict[str, Any]:
        """Look a prompt up and retrieve it as vLLM does; ``wrong`` counts tokens with other values.

        Of ``computed`` tokens vLLM says that it holds them itself.
        """
        tokens, values = self._prompt(seed, chunks)
        self.client.num_computed_tokens = computed
        begun = time.monotonic()
        hits = self._look_up(tokens, request)
        seconds = time.monotonic() - begun
        return {"hits": hits, "seconds": seconds, "wrong": self._retrieve(tokens, values, hits, request)}

    def get_together(self, seed: int, chunks: int, times: int) -> list[dict[str, Any]]:
        """The same prompt looked up by several requests at once, then retrieved by each."""
        tokens, values = self._prompt(seed, chunks)
        requests = [f"together-{number}-{time.monotonic_ns()}" for number in range(times)]
        for request in requests:
            self.client.lookup_cache(request)
            self.client.lookup(tokens, request)
        found = []
        for request in requests:
            hits = self._look_up(tokens, request)
            found.append({"hits": hits, "wrong": self._retrieve(tokens, values, hits, request)})
        return found

    def get_during(self, seed: int, long: int, chunks: int) -> list[dict[str, Any]]:
        """What this node stores itself, looked up while it pulls a long prompt; then that one."""
        request = f"long-{time.monotonic_ns()}"
        tokens, _ = self._prompt(long, chunks)
        self.client.lookup_cache(request)
        self.client.lookup(tokens, request)
        short = self.get(seed, 1, f"short-{request}")
        return [short, self.get(long, chunks, request)]

    def hashes(self, seed: int, chunks: int) -> list[int]:
        """What the controller knows a prompt's chunks by."""
        tokens, _ = self._prompt(seed, chunks)
        return [key.chunk_hash for _, _, key in self.engine.token_database.process_tokens(tokens)]

    def keys(self, seed: int, chunks: int) -> list[str]:
        """What a peer is asked for a prompt's chunks by."""
        tokens, _ = self._prompt(seed, chunks)
        return [key.to_string() for _, _, key in self.engine.token_database.process_tokens(tokens)]

    def _prompt(self, seed: int, chunks: int) -> tuple[Any, Any]:
        """Tokens and the values that a model would compute for them."""
        import torch

        random, length = torch.Generator().manual_seed(seed), chunks * self.settings.chunk
        tokens = torch.randint(1, 50_000, (length,), generator=random)
        return tokens, torch.rand(2, 1, length, self.settings.width, generator=random)

    def _retrieve(self, tokens: Any, values: Any, hits: int, request: str) -> int:
        """End a lookup as vLLM does, its tokens retrieved; how many of them have other values."""
        import torch

        self.client.clear_lookup_status(request)
        self.cache.zero_()
        if hits:
            self.engine.retrieve(tokens[:hits], torch.ones(hits, dtype=torch.bool), req_id=request)
        self.engine.lookup_unpin(request)
        return int((self.cache[:, :, :hits] != values[:, :, :hits]).any(dim=-1).any(dim=0).sum())

    def _look_up(self, tokens: Any, request: str) -> int:
        hits = self.client.lookup_cache(request)
        if hits == -1:
            hits = self.client.lookup(tokens, request)
        while hits is None:
            time.sleep(ENGINE_REST_S)
            hits = self.client.lookup_cache(request)
        return int(hits)

    def look_up_unanswered(self, request: str) -> dict[str, Any]:
        """What an id that was asked for, but of which no worker was told, gets at its timeout and after."""
        begun = time.monotonic()
        first = self.client.lookup_cache(request)
        while first in (-1, None):
            first = self.client.lookup_cache(request)
        seconds = time.monotonic() - begun
        try:
            second: Any = self.client.lookup_cache(request)
        except KeyError as error:
            second = f"KeyError {error}"
        return {"first": first, "seconds": seconds, "second": second}

    def break_p2p(self, method: str) -> None:
        """Let one method of the P2P backend fail, and the others find and load anything."""

        async def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError(f"{method} was made to fail")

        async def find_all(_: str, keys: list[Any], __: bool = False) -> int:
            return len(keys)

        backend = self.engine.storage_manager.storage_backends["P2PBackend"]
        backend.batched_async_contains = find_all
        setattr(backend, method, fail)

    def hold_writes(self, receiver: str, fail: bool = False) -> None:
        """From now on nothing is written to one peer until `release_writes`; how much at once is kept.

        What is held then fails, if so asked.
        """
        channel = self.engine.storage_manager.storage_backends["P2PBackend"].transfer_channel
        write = channel.async_batched_write
        self.sizes: list[int] = []
        self.held, self.released = threading.Event(), threading.Event()

        async def held_write(objects: Any, transfer_spec: Any) -> int:
            if transfer_spec["receiver_id"] == receiver:
                self.sizes.append(len(objects))
                self.held.set()
                while not self.released.is_set():
                    await asyncio.sleep(0.01)
                if fail:
                    raise RuntimeError("made to fail")
            written: int = await write(objects=objects, transfer_spec=transfer_spec)
            return written

        channel.async_batched_write = held_write

    def wait_until_held(self) -> None:
        if not self.held.wait(LOOKUP_TIMEOUT_MS / 1000):
            raise AssertionError("nothing was written")

    def release_writes(self) -> None:
        self.released.set()

    def sizes_of_writes(self) -> list[int]:
        return list(self.sizes)

    def transfers(self) -> dict[str, int]:
        """What the owner counts as transfers: those that have begun, and those not finished."""
        monitor = self.engine.storage_manager.storage_backends["P2PBackend"].stats_monitor
        under_way = [one for one in monitor.p2p_requests.values() if not one.end_time]
        return {"begun": monitor.p2p_request_id, "under_way": len(under_way)}

    def spoil(self, seed: int, chunks: int, how: str) -> None:
        """Have the bytes of a prompt's last chunk be others than those that were stored."""
        backend = self.engine.storage_manager.local_cpu_backend
        keys = [key for _, _, key in self.engine.token_database.process_tokens(self._prompt(seed, chunks)[0])]
        for key in keys:
            if (checksum := getattr(backend.hot_cache[key], "checksum", None)) is not None:
                checksum.result()  # made before its bytes change
        chunk = backend.hot_cache[keys[-1]].tensor
        half = self.settings.chunk // 2
        spoiled = {
            "keys zeroed": lambda: chunk[0].zero_(),
            "values zeroed": lambda: chunk[1].zero_(),
            "two blocks swapped": lambda: chunk.copy_(chunk.roll(half, dims=2)),
            "of another chunk": lambda: chunk.copy_(backend.hot_cache[keys[0]].tensor),
            "one value": lambda: chunk[1, 0, -1, -1].add_(1),
        }
        spoiled[how]()

    def some_key(self) -> int:
        return int(next(iter(self.engine.storage_manager.local_cpu_backend.hot_cache)).chunk_hash)

    def pages(self) -> dict[str, int]:
        """How the pages of memory are used; a page that is free twice will be given to two owners."""
        free = [page.meta.address for page in self.allocator.free_blocks]
        hot = {obj.meta.address for obj in self.engine.storage_manager.local_cpu_backend.hot_cache.values()}
        return {
            "free": len(free),
            "free_twice": len(free) - len(set(free)),
            "free_and_stored": len(set(free) & hot),
            "stored": len(hot),
            "all": len(self.allocator.paged_buffers),
        }

    def written(self, seed: int, chunks: int) -> bool:
        """Whether all values of a prompt lie in memory, whoever owns it."""
        import torch

        _, values = self._prompt(seed, chunks)
        pages = [page.view(torch.float32) for page in self.allocator.paged_buffers]
        wanted = [chunk.flatten() for chunk in values.split(self.settings.chunk, dim=2)]
        return all(any(torch.equal(page, chunk) for page in pages) for chunk in wanted)

    def rejected(self) -> dict[str, float]:
        return rejected()

    def counted(self, counter: str) -> float:
        """What LMCache has exported of one of its counters."""
        from prometheus_client import REGISTRY

        samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
        return sum(s.value for s in samples if s.name == counter)

    def counted_by(self, counter: str, label: str) -> dict[str, float]:
        """One of LMCache's counters, by the values of one of its labels."""
        from prometheus_client import REGISTRY

        samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
        return {s.labels[label]: s.value for s in samples if s.name == counter}

    def declined(self) -> float:
        from lmcache.v1.storage_backend.p2p_backend import DECLINED

        samples = [sample for metric in DECLINED.collect() for sample in metric.samples]
        return float(next(s.value for s in samples if s.name.endswith("_total")))


class _Connector:
    """Moves tokens between the stand-in for vLLM's cache and LMCache's objects."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def batched_from_gpu(self, objects: Any, starts: Any, ends: Any, **_: Any) -> None:
        for obj, start, end in zip(objects, starts, ends, strict=True):
            obj.tensor.copy_(self.cache[:, :, start:end])

    def batched_to_gpu(self, objects: Any, starts: Any, ends: Any, **_: Any) -> None:
        for obj, start, end in zip(objects, starts, ends, strict=True):
            self.cache[:, :, start:end] = obj.tensor


def _nothing(*_: Any) -> None:
    return None


def _obey(connection: Connection, settings: Settings) -> None:
    """What a node's process does: one command after the other, each answered."""
    os.environ["KVSHARE_LANES"] = str(settings.lanes)
    os.environ["KVSHARE_CLUSTER_KEY_FILE"] = settings.key_file
    node = _Inside(settings)
    while True:
        command, arguments = connection.recv()
        connection.send(getattr(node, command)(**arguments))
