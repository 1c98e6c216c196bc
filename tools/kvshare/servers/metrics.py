"""Prometheus text to the few figures that tell where KV came from; labels not asked for are summed over."""

from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from kvshare.servers.readings import Counters, EngineTimes, PullSample, Reading, Sources

PROMPT_TOKENS = "vllm:prompt_tokens_by_source_total"


def parse(text: str) -> tuple[Sample, ...]:
    """Return all samples of a scrape; ValueError if it is no Prometheus text."""
    return tuple(sample for family in text_string_to_metric_families(text) for sample in family.samples)


def total(samples: Sequence[Sample], name: str, **labels: str) -> float | None:
    """Return the sum of the samples of that name which carry ``labels``, or None if there are none."""
    values = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(values) if values else None


def reading(samples: Sequence[Sample]) -> Reading:
    """Return all counters of a server's scrape."""
    return Reading(
        sources(samples),
        engine_times(samples),
        counters(samples),
        copies=_counted(samples, "lmcache:time_to_retrieve_count"),
        copy_seconds=_counted(samples, "lmcache:time_to_retrieve_sum"),
    )


def sources(samples: Sequence[Sample]) -> Sources | None:
    """Return vLLM's prompt tokens by source since the server's start, or None if it does not count them."""
    if total(samples, PROMPT_TOKENS) is None:
        return None
    names = ("local_compute", "local_cache_hit", "external_kv_transfer")
    return Sources(*(int(_counted(samples, PROMPT_TOKENS, source=name)) for name in names))


def engine_times(samples: Sequence[Sample]) -> EngineTimes:
    """Return vLLM's own sums of request times since its start.

    Source: ``vllm/v1/metrics/stats.py`` of vLLM 0.32.0: queue = queued to first scheduled (a wait for remote
    KV included), prefill = first scheduled to first token, decode = first to last token.
    """
    return EngineTimes(
        requests=_counted(samples, "vllm:request_prefill_time_seconds_count"),
        ttft_s=_counted(samples, "vllm:time_to_first_token_seconds_sum"),
        queue_s=_counted(samples, "vllm:request_queue_time_seconds_sum"),
        prefill_s=_counted(samples, "vllm:request_prefill_time_seconds_sum"),
        decode_s=_counted(samples, "vllm:request_decode_time_seconds_sum"),
    )


def counters(samples: Sequence[Sample]) -> Counters:
    """Return LMCache's counters; those that it has not exported yet are zero."""
    rates = [s.value for s in samples if s.name == "lmcache:retrieve_hit_rate"]
    return Counters(
        hit_tokens=_counted(samples, "lmcache:num_hit_tokens_total"),
        requested_tokens=_counted(samples, "lmcache:num_requested_tokens_total"),
        retrieve_hit_rate=min(rates, default=None),
        transfers=_counted(samples, "lmcache:p2p_time_to_transfer_count"),
        transfer_seconds=_counted(samples, "lmcache:p2p_time_to_transfer_sum"),
        transfer_speed_sum=_counted(samples, "lmcache:p2p_transfer_speed_sum"),
    )


def pull_sample(samples: Sequence[Sample]) -> PullSample | None:
    """Return the state of the controller's PULL socket, or None if the scrape does not show it."""
    messages = total(samples, "lmcache:cache_controller_pull_socket_message_count")
    pending = total(samples, "lmcache:cache_controller_pull_socket_has_pending")
    return None if messages is None or pending is None else PullSample(messages, pending > 0)


def _counted(samples: Sequence[Sample], name: str, **labels: str) -> float:
    return total(samples, name, **labels) or 0.0
