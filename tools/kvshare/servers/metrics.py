"""Prometheus text to the few figures that tell where KV came from; labels not asked for are summed over."""

from collections.abc import Sequence
from dataclasses import fields

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from kvshare.servers.readings import Counters, EngineTimes, Held, Memory, PullSample, Reading, Sources, Wire

PROMPT_TOKENS = "vllm:prompt_tokens_by_source_total"
PULLED = "lmcache:pulled_bytes_total"  # by peer, as the patch pulled-from counts them


def parse(text: str) -> tuple[Sample, ...]:
    """Return all samples of a scrape; ValueError if it is no Prometheus text."""
    return tuple(sample for family in text_string_to_metric_families(text) for sample in family.samples)


def total(samples: Sequence[Sample], name: str, **labels: str) -> float | None:
    """Return the sum of the samples of that name which carry ``labels``, or None if there are none."""
    values = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(values) if values else None


def reading(samples: Sequence[Sample]) -> Reading:
    """Return all counters of a server's scrape."""
    times = EngineTimes(**_counters(EngineTimes, samples))
    return Reading(sources(samples), times, counters(samples), **_counters(Reading, samples))


def sources(samples: Sequence[Sample]) -> Sources | None:
    """Return vLLM's prompt tokens by source since the server's start, or None if it does not count them."""
    if total(samples, PROMPT_TOKENS) is None:
        return None
    names = ("local_compute", "local_cache_hit", "external_kv_transfer")
    return Sources(*(int(_counted(samples, PROMPT_TOKENS, source=name)) for name in names))


def counters(samples: Sequence[Sample]) -> Counters:
    """Return LMCache's counters; those that it has not exported yet are zero."""
    rates = [s.value for s in samples if s.name == "lmcache:retrieve_hit_rate"]
    return Counters(retrieve_hit_rate=min(rates, default=None), **_counters(Counters, samples))


def held(samples: Sequence[Sample]) -> Held:
    """Return what a server holds for requests."""
    return Held(**_counters(Held, samples))


def wire(samples: Sequence[Sample]) -> Wire | None:
    """Return what NIXL counts, or None if it is not a scrape of NIXL's."""
    return None if total(samples, "agent_tx_bytes_total") is None else Wire(**_counters(Wire, samples))


def object_bytes(samples: Sequence[Sample]) -> float | None:
    """Return the bytes of one of LMCache's objects, a rank's share of a chunk; None if it holds none."""
    held_bytes = _counted(samples, "lmcache:local_cache_usage")
    objects = _counted(samples, "lmcache:active_memory_objs_count")
    return held_bytes / objects if held_bytes and objects else None


def memory(samples: Sequence[Sample]) -> Memory | None:
    """Return vLLM's own KV memory, or None if the scrape does not tell its size."""
    told = next((s.labels for s in samples if s.name == "vllm:cache_config_info"), {})
    try:
        blocks, block_size = int(told["num_gpu_blocks"]), int(told["block_size"])
    except (KeyError, ValueError):
        return None
    return Memory(blocks, block_size, int(_counted(samples, "vllm:num_preemptions_total")))


def pull_sample(samples: Sequence[Sample]) -> PullSample | None:
    """Return the state of the controller's PULL socket, or None if the scrape does not show it."""
    messages = total(samples, "lmcache:cache_controller_pull_socket_message_count")
    pending = total(samples, "lmcache:cache_controller_pull_socket_has_pending")
    return None if messages is None or pending is None else PullSample(messages, pending > 0)


def _counted(samples: Sequence[Sample], name: str, **labels: str) -> float:
    return total(samples, name, **labels) or 0.0


def _counters(
    record: type[Counters | EngineTimes | Held | Reading | Wire], samples: Sequence[Sample]
) -> dict[str, float]:
    """Return the fields of a record that name their metric."""
    named = {f.name: f.metadata["metrics"] for f in fields(record) if f.metadata}
    return {name: sum(_counted(samples, metric) for metric in metrics) for name, metrics in named.items()}
