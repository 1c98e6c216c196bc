"""Whether every engine answers, and what runs on it."""

from kvshare.checking.registry import Category, Failed, Outcome, Passed
from kvshare.verify.checks.shared import look_at, state
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("engines")


@CHECKS.check("ENG-01", "every Docker engine answers")
def _engines_answer(evidence: Evidence) -> Outcome:
    """Until every context of `.env` answers, nothing is said about the stack.

    `docker context ls` lists the contexts; ssh needs the host's key in `known_hosts`.
    """
    bad = {engine.context: engine.error for engine in evidence.engines if engine.error}
    if not bad:
        return Passed(", ".join(engine.context for engine in evidence.engines))
    return Failed(
        "an engine behind every context",
        "; ".join(f"context {context}: {error}" for context, error in bad.items()),
        tuple(member.service for member in evidence.stack.members if member.context in bad),
        f"docker --context {next(iter(bad))} version",
    )


@CHECKS.check("ENG-02", "the containers run and are healthy", ("ENG-01",), warning=True)
def _containers_run(evidence: Evidence) -> Outcome:
    """By their own health checks. CTRL-01, PRE-01 and DEC-01 judge what it means for reuse.

    `docker inspect` shows what a health check said last.
    """
    bad = [c for c in evidence.containers if c.state != "running" or c.health not in ("healthy", "")]
    if not bad:
        return Passed()
    return Failed(
        "running and healthy",
        "; ".join(f"{c.service} is {state(c)}" for c in bad),
        tuple(c.service for c in bad),
        look_at(evidence, bad[0].service),
    )
