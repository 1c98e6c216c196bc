"""A request sent, as evidence: what came of it, an error included."""

from dataclasses import replace

from kvshare.servers.completion import Ask, complete
from kvshare.servers.http import READ_TIMEOUT_S, Http, RequestFailedError
from kvshare.verify.evidence import Leg, Spec


def answered(leg: Leg, http: Http, model: str, ask: Ask, timeout: float = READ_TIMEOUT_S) -> Leg:
    """Return the leg with its answer, or with why there is none; where its tokens came from is not asked."""
    try:
        answer = complete(http, model, ask, timeout)
    except RequestFailedError as error:
        return replace(leg, error=str(error))
    return replace(
        leg,
        tokens=answer.prompt_tokens,
        ttft_ms=answer.ttft_ms,
        e2e_ms=answer.e2e_ms,
        output=answer.output,
    )


def late(leg: Leg, spec: Spec) -> Leg:
    """Return the leg as one that was not sent any more."""
    return replace(leg, error=f"not sent, the deadline of {spec.deadline_s:.0f} s had passed")
