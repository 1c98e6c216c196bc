"""What the servers and the controller say: facts only, no judgement, all of it plain JSON underneath."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any, Self


class _Sums:
    """Field by field sums and differences of a data class of numbers."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in self._pairs(other)))

    def __sub__(self, other: Self) -> Self:
        return type(self)(*(a - b for a, b in self._pairs(other)))

    def _pairs(self: Any, other: Any) -> zip[tuple[Any, Any]]:
        return zip(astuple(self), astuple(other), strict=True)


@dataclass(frozen=True)
class Sources(_Sums):
    """Prompt tokens by where their KV came from, as vLLM counts them."""

    local_compute: int = 0
    local_cache_hit: int = 0
    external_kv_transfer: int = 0

    @property
    def total(self) -> int:
        """All prompt tokens."""
        return self.local_compute + self.local_cache_hit + self.external_kv_transfer


@dataclass(frozen=True)
class EngineTimes(_Sums):
    """Sums of vLLM's own request times, in seconds, over ``requests`` requests."""

    requests: float = 0.0
    ttft_s: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Counters:
    """LMCache's counters on one server since its start; sums of seconds and of tokens a second."""

    hit_tokens: float = 0.0
    requested_tokens: float = 0.0
    retrieve_hit_rate: float | None = None
    transfers: float = 0.0
    transfer_seconds: float = 0.0
    transfer_speed_sum: float = 0.0

    def __sub__(self, other: Counters) -> Counters:
        """Return the rise; a rate has none."""
        return Counters(
            hit_tokens=self.hit_tokens - other.hit_tokens,
            requested_tokens=self.requested_tokens - other.requested_tokens,
            transfers=self.transfers - other.transfers,
            transfer_seconds=self.transfer_seconds - other.transfer_seconds,
            transfer_speed_sum=self.transfer_speed_sum - other.transfer_speed_sum,
        )


@dataclass(frozen=True)
class Reading:
    """All counters of one server at one moment, or their rise between two.

    Attributes:
        sources: None where vLLM does not count prompt tokens by source.
        copies: how often LMCache copied KV into the engine, in ``copy_seconds`` altogether.
    """

    sources: Sources | None
    engine: EngineTimes
    counters: Counters
    copies: float
    copy_seconds: float

    def __sub__(self, other: Reading) -> Reading:
        return Reading(
            self.sources - other.sources if self.sources and other.sources else None,
            self.engine - other.engine,
            self.counters - other.counters,
            self.copies - other.copies,
            self.copy_seconds - other.copy_seconds,
        )


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


@dataclass(frozen=True)
class Worker:
    """An LMCache worker as the controller lists it."""

    instance: str
    peer_init_url: str | None
    key_count: int


@dataclass(frozen=True)
class PullSample:
    """The controller's PULL socket at one moment: messages so far, and whether any waits to be read."""

    messages: float
    pending: bool


@dataclass(frozen=True)
class ControllerProbe:
    """The controller as the client sees it; the pull loop is sampled before, during and after the legs."""

    answers: bool
    error: str | None = None
    workers: tuple[Worker, ...] = ()
    pull: tuple[PullSample, ...] = ()


@dataclass(frozen=True)
class Admission:
    """How the controller came to know of one prompt's chunks on prefill; ``how`` is empty if it did not."""

    prompt: int
    expected_keys: int
    new_keys: int
    seconds: float
    how: str
