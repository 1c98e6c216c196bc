"""The link between prefill and each decode node, and how fast prefill computes what would travel on it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from kvshare.doctor.containers import OneOffs
from kvshare.doctor.evidence import Evidence, Link, Node, PrefillSpeed
from kvshare.doctor.services import Service
from kvshare.errors import CouldNotCheckError
from kvshare.servers import linkprobe, metrics
from kvshare.site.base import fetch
from kvshare.site.engine import Place, engine

MEASURABLE_TOKENS = 1000
TOLD = ("UCX_", "KVSHARE_TRANSPORT", "KVSHARE_LANES")  # variables that say how KV travels
# Prompt tokens a second, where no server has computed any yet; a GPU's: docs/gpu/nvidia-h200.md at 8,202.
ASSUMED = {
    "cuda": PrefillSpeed(30_000, "assumed, as Llama-3.1-8B on one H200"),
    "cpu": PrefillSpeed(400, "assumed, as the demo model on one core"),
}


def measure(evidence: Evidence, services: Mapping[str, Service], one_offs: OneOffs) -> tuple[Link, ...]:
    """Measure from prefill to each decode node, one after the other."""
    source = evidence.node(evidence.stack.prefill.name)
    targets = [evidence.node(decode.name) for decode in evidence.stack.decodes]
    return tuple(_measure(evidence, source, target, services, one_offs) for target in targets)


def _measure(
    evidence: Evidence, source: Node, target: Node, services: Mapping[str, Service], one_offs: OneOffs
) -> Link:
    reason = _obstacle(evidence, source, target)
    if reason:
        return Link(source.name, target.name, not_tried=reason)
    near, far = (
        partial(one_offs.start, node.context, _place(node, services[node.name]), "probe")
        for node in (source, target)
    )
    try:
        found, lanes = linkprobe.measure(near, far, target.host)
    except (CouldNotCheckError, ValueError) as error:
        return Link(source.name, target.name, error=getattr(error, "message", str(error)))
    return Link(source.name, target.name, found.bytes_per_s, found.latency_s, found.error, lanes=lanes)


def _obstacle(evidence: Evidence, source: Node, target: Node) -> str:
    """Return why the link cannot be measured, or ''."""
    for node in (source, target):
        if node.facts is None:
            return f"{node.name} could not be looked at"
        if node.facts.ucx.error:
            return f"UCX would not start on {node.name}"
    blocked = [
        one
        for one in evidence.dialed
        if one.free and (one.source, one.target) == (source.name, target.name) and one.error
    ]
    return f"{target.name}'s ports cannot be reached from {source.name}" if blocked else ""


def _place(node: Node, service: Service) -> Place:
    """Return what the server's own UCX would have: its variables, and its limits and devices."""
    assert node.facts is not None, "no link is measured from or to a node that was not looked at"
    own = service.place
    told = {name: value for name, value in own.environment.items() if name.startswith(TOLD) and value}
    told |= {"UCX_TLS": node.facts.ucx.tls, "UCX_NET_DEVICES": node.facts.ucx.devices}
    return Place(told) if node.refused else replace(own, environment=told, mounts=())


def prefill_speed(evidence: Evidence, given: float | None) -> PrefillSpeed:
    """Return the prefill speed: as given, as the running server counted it, or assumed."""
    if given is not None:
        return PrefillSpeed(given, "as given")
    stack = evidence.stack
    if evidence.runs(stack.prefill):
        try:
            url, name = f"{stack.prefill.url}/metrics", stack.container_of(stack.prefill)
            counted = speed_of(fetch(partial(engine(stack.prefill.context).inside, name), url))
        except (CouldNotCheckError, ValueError):
            counted = None
        if counted is not None:
            return PrefillSpeed(counted, "measured on the running server")
    return ASSUMED[stack.device]


def speed_of(scrape: str) -> float | None:
    """Return the tokens that a server computed a second of prefill; None if it computed too few to tell."""
    samples = metrics.parse(scrape)
    sources = metrics.sources(samples)
    seconds = metrics.total(samples, "vllm:request_prefill_time_seconds_sum")
    if sources is None or sources.local_compute < MEASURABLE_TOKENS or not seconds:
        return None
    return sources.local_compute / seconds
