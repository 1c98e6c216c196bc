"""What several checks of a verification share: evidence picked out, and words."""

from collections.abc import Iterable, Sequence

from kvshare.checking.registry import Failed, NotChecked, Outcome, Passed
from kvshare.contract import Fingerprint
from kvshare.servers.prompts import reusable
from kvshare.servers.readings import Sources
from kvshare.verify.evidence import Container, Evidence, Leg, Traffic

ONE_IMAGE_FIX = "run one image everywhere: make image, then make up"
ALONE = "make verify with no other traffic on the servers"
ALONE_AND_FRESH = f"{ALONE}, and with another --seed or none"


def traffic_of(evidence: Evidence) -> Traffic:
    assert evidence.traffic is not None, "checks of traffic need CLIENT-01"
    return evidence.traffic


def reusable_tokens(traffic: Traffic) -> int:
    """Return how many tokens of each prompt a peer can hand over."""
    return reusable(traffic.spec.prompt_tokens, traffic.spec.chunk_size)


def fingerprints(evidence: Evidence, all_engines: bool = False) -> dict[str, Fingerprint]:
    """Return the servers' fingerprints by service, and those of whatever they share KV by if asked."""
    found = {c.service: c.fingerprint for c in evidence.containers if c.fingerprint is not None}
    return {service: one for service, one in found.items() if all_engines or service in ("prefill", "decode")}


# --- outcomes -----------------------------------------------------------------------------------------------


def answers(evidence: Evidence, service: str) -> Outcome:
    """Judge whether a server answers."""
    traffic = traffic_of(evidence)
    probe = traffic.prefill if service == "prefill" else traffic.decode
    if probe.healthy:
        return Passed(evidence.stack.member(service).url)
    return down(evidence, service, "/health", probe.error)


def down(evidence: Evidence, service: str, path: str, error: str | None) -> Failed:
    url = f"{evidence.stack.member(service).url}{path}"
    found = f"{error or 'no answer'}; the container is {state(evidence.container(service))}"
    return Failed(f"200 from {url}", found, (service,), look_at(evidence, service))


def complete(legs: Sequence[Leg], traffic: Traffic, detail: str) -> Outcome:
    """Return Passed if every prompt has its leg: none of anything is no proof."""
    expected = traffic.spec.prompts + 1  # the warm-up's
    if len(legs) == expected:
        return Passed(detail)
    return NotChecked(f"{len(legs)} of {expected} legs were sent")


# --- what to type next --------------------------------------------------------------------------------------


def docker(evidence: Evidence, service: str, command: str) -> str:
    context = evidence.stack.member(service).context
    return f"docker --context {context} {command} {evidence.container(service).name}"


def logs(evidence: Evidence, service: str, pattern: str = "") -> str:
    return docker(evidence, service, "logs") + (f" 2>&1 | grep '{pattern}'" if pattern else " --tail 50")


def up(evidence: Evidence, service: str) -> str:
    return f"make up NODE={evidence.stack.decode.name if service == 'decode' else 'prefill'}"


def look_at(evidence: Evidence, service: str) -> str:
    """Return the command that starts a service which is not there, or shows the log of one that is."""
    missing = evidence.container(service).state == "missing"
    return up(evidence, service) if missing else logs(evidence, service)


def of_leg(evidence: Evidence, leg: Leg, otherwise: str) -> str:
    """Return the command that shows why a leg failed; ``otherwise`` where it did not."""
    return otherwise if leg.error is None else logs(evidence, leg.node)


# --- words --------------------------------------------------------------------------------------------------


def leg_found(leg: Leg) -> str:
    """Return what a leg came to, in words."""
    what = f"{leg.leg} leg of prompt {leg.prompt}"
    if leg.error is not None:
        return f"{what}: {leg.error}"
    if leg.sources is None:
        return f"{what}: the server does not count vllm:prompt_tokens_by_source"
    return f"{what}: {leg.tokens} prompt tokens, {sources_found(leg.sources)}"


def sources_found(s: Sources) -> str:
    """Return where prompt tokens came from, as vLLM names it."""
    return (
        f"local_compute {s.local_compute} + local_cache_hit {s.local_cache_hit}"
        f" + external_kv_transfer {s.external_kv_transfer}"
    )


def state(container: Container) -> str:
    if container.state == "running":
        return f"running and {container.health}" if container.health else "running"
    return f"exited with code {container.exit_code}" if container.state == "exited" else container.state


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
