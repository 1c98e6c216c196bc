"""Prometheus text to the few figures that tell where KV came from; labels not asked for are summed over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from kvshare.servers.readings import Counters, EngineTimes, PullSample, Reading, Sources

PROMPT_TOKENS = "vllm:prompt_tokens_by_source_total"


@dataclass(frozen=True)
class Sample:
    """One line of a scrape."""

    name: str
    labels: dict[str, str]
    value: float


def parse(text: str) -> tuple[Sample, ...]:
    """Return all samples of a scrape; ValueError if it is no Prometheus text."""
    families = text_string_to_metric_families(text)
    return tuple(Sample(s.name, dict(s.labels), s.value) for family in families for s in family.samples)


def total(samples: Iterable[Sample], name: str, **labels: str) -> float | None:
    """Return the sum of the samples of that name which carry ``labels``, or None if there are none."""
    values = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(values) if values else None


def sources(samples: Iterable[Sample]) -> Sources | None:
    """Return vLLM's prompt tokens by source since the server's start, or None if it does not count them."""
    samples = tuple(samples)
    if total(samples, PROMPT_TOKENS) is None:
        return None
    counted = {
        source: int(total(samples, PROMPT_TOKENS, source=source) or 0)
        for source in ("local_compute", "local_cache_hit", "external_kv_transfer")
    }
    return Sources(**counted)


def counters(samples: Iterable[Sample]) -> Counters:
    """Return LMCache's counters; those that it has not exported yet are zero."""
    samples = tuple(samples)
    rates = [s.value for s in samples if s.name == "lmcache:retrieve_hit_rate"]
    return Counters(
        hit_tokens=total(samples, "lmcache:num_hit_tokens_total") or 0.0,
        requested_tokens=total(samples, "lmcache:num_requested_tokens_total") or 0.0,
        retrieve_hit_rate=min(rates) if rates else None,
        transfers=total(samples, "lmcache:p2p_time_to_transfer_count") or 0.0,
        transfer_seconds=total(samples, "lmcache:p2p_time_to_transfer_sum") or 0.0,
        transfer_speed_sum=total(samples, "lmcache:p2p_transfer_speed_sum") or 0.0,
    )


def engine_times(samples: Iterable[Sample]) -> EngineTimes:
    """Return vLLM's own sums of request times since its start.

    Source: ``vllm/v1/metrics/stats.py`` of vLLM 0.32.0: queue = queued to first scheduled (a wait for remote
    KV included), prefill = first scheduled to first token, decode = first to last token.
    """
    samples = tuple(samples)

    def read(name: str) -> float:
        return total(samples, f"vllm:{name}") or 0.0

    return EngineTimes(
        requests=read("request_prefill_time_seconds_count"),
        ttft_s=read("time_to_first_token_seconds_sum"),
        queue_s=read("request_queue_time_seconds_sum"),
        prefill_s=read("request_prefill_time_seconds_sum"),
        decode_s=read("request_decode_time_seconds_sum"),
    )


def reading(samples: Iterable[Sample]) -> Reading:
    """Return all counters of a server's scrape."""
    samples = tuple(samples)
    return Reading(
        sources(samples),
        engine_times(samples),
        counters(samples),
        total(samples, "lmcache:time_to_retrieve_count") or 0.0,
        total(samples, "lmcache:time_to_retrieve_sum") or 0.0,
    )


def pull_sample(samples: Iterable[Sample]) -> PullSample | None:
    """Return the state of the controller's PULL socket, or None if the scrape does not show it."""
    samples = tuple(samples)
    messages = total(samples, "lmcache:cache_controller_pull_socket_message_count")
    pending = total(samples, "lmcache:cache_controller_pull_socket_has_pending")
    if messages is None or pending is None:
        return None
    return PullSample(messages, pending > 0)
