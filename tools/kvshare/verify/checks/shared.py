"""What several checks of `kvshare verify` share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvshare.checking.registry import Failed, NotChecked, Outcome, Passed
from kvshare.contract import Fingerprint
from kvshare.servers.prompts import reusable
from kvshare.verify.evidence import Container, Evidence, Leg, Traffic

ONE_IMAGE_FIX = "run one image everywhere: make image, then make up"


def traffic_of(evidence: Evidence) -> Traffic:
    assert evidence.traffic is not None, "checks of traffic need CLIENT-01"
    return evidence.traffic


def reusable_tokens(traffic: Traffic) -> int:
    return reusable(traffic.spec.prompt_tokens, traffic.spec.chunk_size)


def fingerprints(evidence: Evidence, controller_too: bool = False) -> dict[str, Fingerprint]:
    """Return the servers' fingerprints by service, and the controller's if asked."""
    found = {
        c.service: c.fingerprint for c in evidence.containers if controller_too or c.service != "controller"
    }
    return {service: fingerprint for service, fingerprint in found.items() if fingerprint is not None}


def down(evidence: Evidence, service: str, url: str, error: str | None) -> Failed:
    container = evidence.container(service)
    return Failed(
        f"200 from {url}",
        f"{error or 'no answer'}; the container is {state(container)}",
        (service,),
        look_at(evidence, service),
    )


def look_at(evidence: Evidence, service: str) -> str:
    """Return the command that starts a service which is not there, or shows the log of one that is."""
    if evidence.container(service).state == "missing":
        return f"make up NODE={'decode' if service == 'decode' else 'prefill'}"
    return logs_command(evidence, service)


def complete(legs: Sequence[Leg], traffic: Traffic, detail: str) -> Outcome:
    """Return Passed if every prompt has its leg: none of anything is no proof."""
    expected = traffic.spec.prompts + 1  # the warm-up's
    return (
        Passed(detail) if len(legs) == expected else NotChecked(f"{len(legs)} of {expected} legs were sent")
    )


def after_leg(evidence: Evidence, leg: Leg, otherwise: str) -> str:
    return otherwise if leg.error is None else logs_command(evidence, leg.node)


def leg_found(leg: Leg) -> str:
    """Return what a leg came to, in words."""
    what = f"{leg.leg} leg of prompt {leg.prompt}"
    if leg.error is not None:
        return f"{what}: {leg.error}"
    if leg.sources is None:
        return f"{what}: the server does not count vllm:prompt_tokens_by_source"
    s = leg.sources
    return (
        f"{what}: {leg.tokens} prompt tokens, local_compute {s.local_compute}"
        f" + local_cache_hit {s.local_cache_hit} + external_kv_transfer {s.external_kv_transfer}"
    )


def logs_command(evidence: Evidence, service: str, pattern: str = "") -> str:
    context = evidence.stack.member(service).context
    tail = f" 2>&1 | grep '{pattern}'" if pattern else " --tail 50"
    return f"docker --context {context} logs {evidence.container(service).name}{tail}"


def state(container: Container) -> str:
    if container.state == "running":
        return f"running and {container.health}" if container.health else "running"
    return f"exited with code {container.exit_code}" if container.state == "exited" else container.state


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
