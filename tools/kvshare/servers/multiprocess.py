"""LMCache in a process of its own on each node: cache servers, and the coordinator that lists them."""

import json
import time
from collections.abc import Collection, Mapping, Sequence

from prometheus_client.samples import Sample

from kvshare.servers import metrics
from kvshare.servers.controller import Guarded
from kvshare.servers.http import RequestFailedError
from kvshare.servers.prompts import Prompt
from kvshare.servers.readings import (
    Admission,
    CacheProbe,
    ControllerProbe,
    Mark,
    PullSample,
    Reading,
    Told,
    Worker,
)
from kvshare.servers.wait import poll

TOLD = Told(
    transfers="lmcache_mp_p2p_served_objects_total",
    hits="lmcache_mp_lookup_hit_tokens_total",
    logged=("Prefetch request completed", "Prefetch request completed"),
    mover="decode",
    wire="agent_rx_bytes_total",
    by_chunk=True,
)
STORED = "lmcache_mp_l1_write_chunks_total"
PULLED = "lmcache_mp_p2p_pulled_bytes_total"  # by peer, as the patch mp-served counts them
PAGE_BYTES = 65536  # that an object fills, the last one in part: kvshare_engine/cache.py has it so
_PEER = "P2PL2Adapter"


class CacheClient:
    """A cache server to be asked; for one thread at a time."""

    def __init__(self, base: str, token: str | None = None) -> None:
        self.http = Guarded(base, token)

    def probe(self) -> CacheProbe:
        """Return whether it answers, whom it asks for KV, and what it holds."""
        try:
            told = json.loads(self.http.get("/status", timeout=10.0))
            storage = told["storage_manager"]
            held = storage["l1_manager"]
            peers = [one for one in storage["l2_adapters"] if one["type"] == _PEER]
            return CacheProbe(
                answers=True,
                state=str(told["p2p_state"]),
                peers=tuple(str(one["peer_transfer_channel_server_url"]) for one in peers),
                objects=int(held["total_object_count"]),
                used_bytes=int(held["memory_used_bytes"]),
                locked=int(held["read_locked_count"]) + int(held["write_locked_count"]),
            )
        except RequestFailedError as error:
            return CacheProbe(answers=False, error=str(error))
        except (ValueError, LookupError, TypeError):
            return CacheProbe(answers=False, error=f"{self.http.base}/status tells of no cache")

    def samples(self) -> tuple[Sample, ...]:
        """Return all that it counts; nothing where it does not tell."""
        try:
            return metrics.parse(self.http.get("/metrics", timeout=10.0))
        except (RequestFailedError, ValueError):
            return ()

    def stored(self) -> int:
        """Return how many objects were stored in it; a rank's share of a chunk is one."""
        return int(metrics.total(self.samples(), STORED) or 0)


class CacheServers:
    """The cache servers of a pair and their coordinator; who wants KV asks all peers for it.

    Args:
        caches: where they answer, by node.
        token: what their HTTP asks for where the cluster has a key.
    """

    unheard = "prefill's cache server did not store what prefill has just computed."

    def __init__(
        self,
        coordinator: str,
        caches: Mapping[str, str],
        chunk_size: int,
        ranks: int = 1,
        token: str | None = None,
    ) -> None:
        self.http = Guarded(coordinator, token)
        self.caches = {node: CacheClient(url, token) for node, url in caches.items()}
        self.chunk_size, self.ranks = chunk_size, ranks

    def await_workers(self, instances: Collection[str], wait_s: float) -> ControllerProbe:
        """Return what is seen once all of these addresses are listed, and each knows the others as peers."""
        wanted = set(instances)

        def met(probe: ControllerProbe) -> bool:
            known = set().union(*(cache.peers for cache in probe.caches.values()))
            return wanted <= {worker.instance for worker in probe.workers} and (
                len(wanted) < 2 or wanted <= known
            )

        return poll(self.probe, met, wait_s)

    def pulled(self) -> dict[str, float] | None:
        """Return the bytes that decode's has read, by the address of the peer that they are from."""
        samples = self.caches["decode"].samples()
        named = [sample for sample in samples if sample.name == PULLED]
        return {sample.labels["peer"]: sample.value for sample in named} if samples else None

    def probe(self) -> ControllerProbe:
        """Return whether the coordinator answers, the cache servers that it lists, and what each says."""
        caches = {node: cache.probe() for node, cache in self.caches.items()}
        try:
            listed = json.loads(self.http.get("/instances"))["instances"]
            urls = [str(one["p2p_advertised_url"]) for one in listed]
        except RequestFailedError as error:
            return ControllerProbe(answers=False, error=str(error), caches=caches)
        except (ValueError, LookupError, TypeError):
            nothing = f"{self.http.base}/instances lists no cache servers"
            return ControllerProbe(answers=False, error=nothing, caches=caches)
        workers = tuple(Worker(url, url, key_count=0) for url in urls)
        return ControllerProbe(answers=True, workers=workers, caches=caches)

    def mark(self) -> Mark:
        """Return how much prefill's has stored, for a later ``await_admission``."""
        return Mark((self.caches["prefill"].stored(),))

    def pull_sample(self) -> PullSample | None:
        """Return None: nobody is told of what is stored."""
        return None

    def await_admission(
        self, prompts: Sequence[Prompt], before: Mark, deadline_s: float, number: int = 0
    ) -> Admission:
        """Wait until prefill's has stored the prompts' chunks; ``number`` is what to call them."""
        start = time.monotonic()
        due = self.ranks * sum(len(prompt) // self.chunk_size for prompt in prompts)
        new = poll(lambda: self.mark().keys[0] - before.keys[0], lambda rise: rise >= due, deadline_s)
        how = "stored" if new >= due else ""
        return Admission(number, due, new, time.monotonic() - start, how)

    def told(self, owner: Reading, puller: Reading, pulls: int, tokens: int) -> bool:
        """Whether both cache servers have counted what decode pulled."""
        handed_out = owner.counters.transfers >= self.ranks * max(pulls, tokens / self.chunk_size)
        return handed_out and puller.counters.hit_tokens >= tokens
