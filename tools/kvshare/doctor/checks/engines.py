"""Whether every engine answers and is new enough."""

from __future__ import annotations

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.doctor.checks.shared import dotted, members
from kvshare.doctor.evidence import Evidence
from kvshare.site.contexts import MINIMUM_ENGINE, version_of

CHECKS: Category[Evidence] = Category("engines")
MINIMUM_COMPOSE = (2, 26)


@CHECKS.check("DOC-ENG-01", "every Docker engine answers")
def _engines_answer(evidence: Evidence) -> Outcome:
    bad = [engine for engine in evidence.engines if engine.error]
    if not bad:
        return Passed(", ".join(f"{e.context} on {e.machine}" for e in evidence.engines))
    silent = {engine.context for engine in bad}
    return Failed(
        "an engine behind every context",
        "; ".join(f"context {engine.context}: {engine.error}" for engine in bad),
        tuple(m.name for m in evidence.stack.members if m.context in silent),
        f"docker --context {bad[0].context} version",
    )


@CHECKS.check("DOC-ENG-02", "every engine is new enough")
def _engines_new(evidence: Evidence) -> Outcome:
    wanted = dotted(MINIMUM_ENGINE)
    if not evidence.asked:
        return NotChecked("no engine answers")
    old = [engine for engine in evidence.asked if version_of(engine.version) < MINIMUM_ENGINE]
    if not old:
        return Passed(", ".join(f"{e.context} {e.version}" for e in evidence.asked))
    return Failed(
        f"Docker Engine {wanted} or newer everywhere",
        "; ".join(f"{engine.version} on {engine.machine}" for engine in old),
        members(evidence, [engine.context for engine in old]),
        "make setup, in a clone on that machine, or its distribution's own upgrade",
    )


@CHECKS.check("DOC-ENG-03", "Compose is new enough")
def _compose_new(evidence: Evidence) -> Outcome:
    found = evidence.operator.compose
    if version_of(found) >= MINIMUM_COMPOSE:
        return Passed(found)
    return Failed(f"Compose {dotted(MINIMUM_COMPOSE)} or newer", found or "none", (), "make setup")


@CHECKS.check("DOC-ENG-04", "buildx is there (images cannot be built without it)", warning=True)
def _buildx_there(evidence: Evidence) -> Outcome:
    found = evidence.operator.buildx
    return Passed(found) if found else Failed("Docker's buildx plugin", "none", (), "make setup")
