"""Whether the gateway lets prefill compute first and decode pull, with the right answer."""

from kvshare.checking.registry import Category, Failed, NotChecked, NotNeeded, Outcome, Passed
from kvshare.servers.readings import Sources
from kvshare.verify import tolerance
from kvshare.verify.checks.answers import TRUST_NONE, answer_limit
from kvshare.verify.checks.shared import ALONE_AND_FRESH, reusable_tokens, sources_found, traffic_of
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("gateway")
_NONE = NotNeeded("no gateway stands before one decode node alone")  # of several it chooses one itself
_WHOLE = ("PRE-01", "DEC-01", "DEC-02", "KV-PEER-01")


@CHECKS.check("GATE-01", "the gateway answers", _WHOLE)
def _answers(evidence: Evidence) -> Outcome:
    """One endpoint before all servers, on the prefill node. `make up NODE=gateway` starts it."""
    traffic = traffic_of(evidence)
    url, through = traffic.spec.gateway, traffic.gateway
    if not url:
        return _NONE
    if through is None:
        return NotChecked("no prompt was sent through it")
    if through.leg.error is None:
        return Passed(url)
    fix = "make up NODE=gateway, or make logs ARGS='--node gateway --tail 50'"
    return Failed(f"an answer from {url}/v1/completions", through.leg.error, ("gateway",), fix)


@CHECKS.check(
    "GATE-02", "a fresh prompt through it is computed on prefill and pulled by decode", ("GATE-01",)
)
def _prefilled_and_pulled(evidence: Evidence) -> Outcome:
    """By both servers' own counters, to the token.

    Computed on decode: prefill was not asked first, or its chunks were not known to the controller in time;
    `kvshare_gateway_prefills_total` of its `/metrics` says which.
    """
    through, expected = traffic_of(evidence).gateway, reusable_tokens(traffic_of(evidence))
    if through is None:
        return _NONE
    tokens = through.leg.tokens
    due = Sources(local_compute=tokens), Sources(tokens - expected, 0, expected)
    if (through.prefill, through.decode) == due:
        return Passed(f"{tokens} tokens computed on prefill, {expected} of them pulled by decode")
    return Failed(
        f"prefill: {_words(due[0])}; decode: {_words(due[1])}",
        f"prefill: {_words(through.prefill)}; decode: {_words(through.decode)}",
        ("gateway",),
        f"make logs ARGS='--node gateway --tail 50'; {ALONE_AND_FRESH}",
    )


@CHECKS.check("GATE-03", "its answer is right", ("GATE-02", "PRE-04"))
def _right(evidence: Evidence) -> Outcome:
    """As KV-RIGHT-01 and KV-RIGHT-02: by the log-probabilities and the tokens of prefill's own answer."""
    through = traffic_of(evidence).gateway
    if through is None:
        return _NONE
    if through.honest.error is not None:
        return NotChecked(f"prefill did not answer the same prompt: {through.honest.error}")
    limit = answer_limit(evidence)
    off = tolerance.distance(through.honest.output, through.leg.output)
    parted = tolerance.first_divergence(through.honest.output, through.leg.output)
    if off <= limit.value and (parted is None or tolerance.is_explained(parted, limit)):
        return Passed(f"off by {off:.2g}, limit {limit.value:.2g}")
    found = f"they differ by {off:.3g}" + ("" if parted is None else f", from token {parted.position + 1} on")
    expected = f"prefill's own answer, within {limit.value:.2g}"
    return Failed(expected, found, ("decode",), TRUST_NONE)


def _words(found: Sources | None) -> str:
    return "not counted" if found is None else sources_found(found)
