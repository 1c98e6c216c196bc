"""What the servers and the controller say: facts only, no judgement, all of it plain JSON underneath."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import add, sub
from typing import Any, Self


def counted(*metrics: str) -> Any:
    """Return a field that metrics give, summed over their labels; 0 before they are exported.

    Of two, each way of sharing exports its own.
    """
    return field(default=0.0, metadata={"metrics": metrics})


@dataclass(frozen=True)
class Sums:
    """Sums and differences of a data class, field by field; None where either side has none."""

    def __add__(self, other: Self) -> Self:
        return self._each(add, other)

    def __sub__(self, other: Self) -> Self:
        return self._each(sub, other)

    def _each(self, operation: Callable[[Any, Any], Any], other: Self) -> Self:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return type(self)(*(None if a is None or b is None else operation(a, b) for a, b in pairs))


@dataclass(frozen=True)
class Sources(Sums):
    """Prompt tokens by where their KV came from, as vLLM counts them."""

    local_compute: int = 0
    local_cache_hit: int = 0
    external_kv_transfer: int = 0

    @property
    def total(self) -> int:
        """All prompt tokens."""
        return self.local_compute + self.local_cache_hit + self.external_kv_transfer


@dataclass(frozen=True)
class EngineTimes(Sums):
    """Sums of vLLM's own request times, in seconds, over ``requests`` requests.

    Source: ``vllm/v1/metrics/stats.py`` of vLLM 0.32.0: queue = queued to first scheduled (a wait for remote
    KV included), prefill = first scheduled to first token, decode = first to last token.
    """

    requests: float = counted("vllm:request_prefill_time_seconds_count")
    ttft_s: float = counted("vllm:time_to_first_token_seconds_sum")
    queue_s: float = counted("vllm:request_queue_time_seconds_sum")
    prefill_s: float = counted("vllm:request_prefill_time_seconds_sum")
    decode_s: float = counted("vllm:request_decode_time_seconds_sum")


@dataclass(frozen=True)
class Counters(Sums):
    """LMCache's counters on one server since its start; sums of seconds and of tokens a second.

    Attributes:
        transfers: to peers; with SHARING=multiprocess the objects whose addresses peers were handed.
    """

    hit_tokens: float = counted("lmcache:num_hit_tokens_total", "lmcache_mp_lookup_hit_tokens_total")
    requested_tokens: float = counted(
        "lmcache:num_requested_tokens_total", "lmcache_mp_lookup_requested_tokens_total"
    )
    retrieve_hit_rate: float | None = None
    transfers: float = counted("lmcache:p2p_time_to_transfer_count", "lmcache_mp_p2p_served_objects_total")
    transfer_seconds: float = counted("lmcache:p2p_time_to_transfer_sum")
    transfer_speed_sum: float = counted("lmcache:p2p_transfer_speed_sum")


@dataclass(frozen=True)
class Reading(Sums):
    """All counters of one server at one moment, or their rise between two.

    Attributes:
        sources: None where vLLM does not count prompt tokens by source.
        copies: how often LMCache copied KV into the engine, in ``copy_seconds`` altogether.
    """

    sources: Sources | None
    engine: EngineTimes
    counters: Counters
    copies: float = counted("lmcache:time_to_retrieve_count")
    copy_seconds: float = counted("lmcache:time_to_retrieve_sum")


@dataclass(frozen=True)
class Held(Sums):
    """What a server holds for requests at one moment, by its gauges.

    Attributes:
        kv_usage: share of vLLM's own KV memory, 0 to 1.
        pinned: objects that LMCache may not evict, being read or sent.
    """

    running: float = counted("vllm:num_requests_running")
    waiting: float = counted("vllm:num_requests_waiting")
    kv_usage: float = counted("vllm:kv_cache_usage_perc")
    pinned: float = counted("lmcache:pinned_memory_objs_count")


@dataclass(frozen=True)
class Wire(Sums):
    """What NIXL itself counts since its start at who moves KV; ``dropped`` are events that it lost count of.

    That is the sender which writes, or with SHARING=multiprocess the receiver which reads.
    """

    bytes: float = counted("agent_tx_bytes_total", "agent_rx_bytes_total")
    dropped: float = counted("agent_telemetry_events_dropped_total")


@dataclass(frozen=True)
class Memory:
    """vLLM's own KV memory, in blocks of so many tokens, and how often a request had to leave it."""

    blocks: int
    block_size: int
    preemptions: int

    @property
    def tokens(self) -> int:
        """How many tokens it has room for."""
        return self.blocks * self.block_size


@dataclass(frozen=True)
class Position:
    """One generated token and the most likely tokens at its place with their natural log-probabilities."""

    token: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class ServerProbe:
    """A server as the client sees it."""

    healthy: bool
    error: str | None = None
    model: str | None = None
    max_model_len: int | None = None
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Worker:
    """An LMCache worker as the controller lists it; each rank of a server has one."""

    instance: str
    peer_init_url: str | None
    key_count: int
    rank: int = 0


@dataclass(frozen=True)
class CacheProbe:
    """A cache server as the client sees it.

    Attributes:
        state: how far its own registration is, in its own word.
        peers: the addresses that it reads KV from.
        locked: objects that it may not evict, being written, read or sent.
    """

    answers: bool
    error: str | None = None
    state: str = ""
    peers: tuple[str, ...] = ()
    objects: int = 0
    used_bytes: int = 0
    locked: int = 0


@dataclass(frozen=True)
class PullSample:
    """The controller's PULL socket at one moment: messages so far, and whether any waits to be read."""

    messages: float
    pending: bool


@dataclass(frozen=True)
class ControllerProbe:
    """The controller as the client sees it; the pull loop is sampled before, during and after the legs.

    With SHARING=multiprocess it is the coordinator, whose workers are addresses of cache servers, and what
    each of these says, by node.
    """

    answers: bool
    error: str | None = None
    workers: tuple[Worker, ...] = ()
    pull: tuple[PullSample, ...] = ()
    caches: dict[str, CacheProbe] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """Where one way of sharing tells what moved, in the words of a report.

    Attributes:
        transfers: the owner's metric; ``by_chunk``: of each chunk of a pull, not of each pull.
        hits: the metric of who pulls.
        logged: what owner and puller write into their logs of a pull.
        mover: the node whose NIXL counts bytes, in the metric ``wire``.
    """

    transfers: str
    hits: str
    logged: tuple[str, str]
    mover: str
    wire: str
    by_chunk: bool = False

    def due(self, pulls: int, chunks: int) -> int:
        """Return how many transfers of each rank so many pulls are, of so many chunks altogether."""
        return chunks if self.by_chunk else pulls


@dataclass(frozen=True)
class Mark:
    """The keys known to be at the owner, and the messages read of them, at one moment."""

    keys: tuple[int, ...]  # by rank
    messages: float = 0.0


@dataclass(frozen=True)
class Admission:
    """How one prompt's chunks on prefill came to be known; ``how`` is empty if it did not.

    Every rank has a key for every chunk; ``by_rank`` holds how many of each came.
    """

    prompt: int
    expected_keys: int
    new_keys: int
    seconds: float
    how: str
    by_rank: tuple[int, ...] = ()
