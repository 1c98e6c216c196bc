"""Whether every engine answers, and what runs on it."""

from __future__ import annotations

from kvshare.checking.registry import Category, Failed, Outcome, Passed
from kvshare.verify.checks.shared import look_at, state
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("engines")


@CHECKS.check("ENG-01", "every Docker engine answers")
def _engines_answer(evidence: Evidence) -> Outcome:
    bad = [engine for engine in evidence.engines if engine.error]
    if not bad:
        return Passed(", ".join(engine.context for engine in evidence.engines))
    return Failed(
        "an engine behind every context",
        "; ".join(f"context {engine.context}: {engine.error}" for engine in bad),
        tuple(m.service for m in evidence.stack.members if m.context in {engine.context for engine in bad}),
        f"docker --context {bad[0].context} version",
    )


@CHECKS.check("ENG-02", "controller, prefill and decode run and are healthy", ("ENG-01",), warning=True)
def _containers_run(evidence: Evidence) -> Outcome:
    bad = [c for c in evidence.containers if c.state != "running" or c.health not in ("healthy", "")]
    if not bad:
        return Passed()
    return Failed(
        "running and healthy",
        "; ".join(f"{c.service} is {state(c)}" for c in bad),
        tuple(c.service for c in bad),
        look_at(evidence, bad[0].service),
    )
