"""Whether every engine answers and is new enough."""

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.doctor.checks.shared import dotted, members
from kvshare.doctor.evidence import Evidence
from kvshare.site.contexts import MINIMUM_ENGINE, version_of
from kvshare.site.engine import APART

CHECKS: Category[Evidence] = Category("engines")
MINIMUM_COMPOSE = (2, 26)


@CHECKS.check("DOC-ENG-01", "every Docker engine answers")
def _engines_answer(evidence: Evidence) -> Outcome:
    """As ENG-01; the other machines are looked at all the same.

    `ARGS=--wait=60` goes on asking, e.g. while a machine boots.
    """
    bad = {engine.context: engine.error for engine in evidence.engines if engine.error}
    if not bad:
        return Passed(", ".join(f"{e.context} on {e.machine}" for e in evidence.engines))
    return Failed(
        "an engine behind every context",
        "; ".join(f"context {context}: {error}" for context, error in bad.items()),
        members(evidence, bad),
        f"docker --context {next(iter(bad))} version",
    )


@CHECKS.check("DOC-ENG-02", "every engine is new enough")
def _engines_new(evidence: Evidence) -> Outcome:
    """The Compose files use a health check's `start_interval`, which Docker Engine knows from 25 on."""
    if not evidence.asked:
        return NotChecked("no engine answers")
    old = [engine for engine in evidence.asked if version_of(engine.version) < MINIMUM_ENGINE]
    if not old:
        return Passed(", ".join(f"{e.context} {e.version}" for e in evidence.asked))
    return Failed(
        f"Docker Engine {dotted(MINIMUM_ENGINE)} or newer everywhere",
        "; ".join(f"{engine.version} on {engine.machine}" for engine in old),
        members(evidence, [engine.context for engine in old]),
        "make setup, in a clone on that machine, or its distribution's own upgrade",
    )


@CHECKS.check("DOC-ENG-03", "Compose is new enough")
def _compose_new(evidence: Evidence) -> Outcome:
    """Here, not on the nodes: it runs where you type, and acts on a context.

    `make setup` is for Debian and Ubuntu; elsewhere see Docker's own documentation.
    """
    found = evidence.operator.compose
    if version_of(found) >= MINIMUM_COMPOSE:
        return Passed(found)
    return Failed(f"Compose {dotted(MINIMUM_COMPOSE)} or newer", found or "none", (), "make setup")


@CHECKS.check("DOC-ENG-04", "buildx is there (images cannot be built without it)", warning=True)
def _buildx_there(evidence: Evidence) -> Outcome:
    """Beside Compose. Images can also be pulled (`make pull`) or streamed (`make ship`)."""
    found = evidence.operator.buildx
    return Passed(found) if found else Failed("Docker's buildx plugin", "none", (), "make setup")


@CHECKS.check("DOC-ENG-05", "containers get the machine's own network")
def _on_the_network(evidence: Evidence) -> Outcome:
    """LMCache and UCX hand out the address that they listen on, so the services use the host's network.

    An engine with userns-remap refuses that. A rootless one grants it on a network of its own, where neither
    the machine's addresses are nor its ports.
    """
    if not evidence.asked:
        return NotChecked("no engine answers")
    bad = {engine.context: APART[engine.apart] for engine in evidence.asked if engine.apart}
    if not bad:
        return Passed()
    found = "; ".join(f"context {context}: its engine {said}" for context, (said, _) in bad.items())
    fix = next(instead for _, instead in bad.values())
    return Failed("engines whose containers use the host's network", found, members(evidence, bad), fix)
