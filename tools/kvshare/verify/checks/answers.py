"""Whether the answers are right."""

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.verify import ledger, tolerance
from kvshare.verify.checks.shared import ALONE, fingerprints, traffic_of
from kvshare.verify.evidence import CHANGED, JUDGED, PEER, REFERENCE, SAME_SPLIT, Evidence, Leg, Traffic

CHECKS: Category[Evidence] = Category("answers")
_ANSWERED = ("PRE-01", "PRE-04", "DEC-01", "DEC-02")
TRUST_NONE = "trust no answer of this pair: docs/patches.md, packed KV"


@CHECKS.check("KV-RIGHT-01", "the answers from pulled KV have the right log-probabilities", _ANSWERED)
def _right_logprobs(evidence: Evidence) -> Outcome:
    """Those of the same prompt from prefill's own cache, within the [tolerance](#tolerance).

    One prompt is sent once more with one chunk changed: where that moves the answer by less than ten times
    the tolerance, wrong KV could pass for noise, and the verification cannot tell (exit code 3). Models of
    random weights in 16 bits are like that.

    Take the pair out of service, and look at IMG-02: without `packed-kv` LMCache returns wrong KV on a GPU.
    """
    limit = answer_limit(evidence)
    reasons = f"{limit.value:.2g} (floor {limit.floor:.2g}, noise {limit.noise:.2g})"
    pairs = _pairs(traffic_of(evidence), SAME_SPLIT, PEER)
    distances = {prompt: tolerance.distance(a.output, b.output) for prompt, a, b in pairs}
    if not distances:
        return NotChecked("no prompt has both legs")
    worst = max(distances, key=lambda prompt: distances[prompt])
    if distances[worst] <= limit.value:
        if reason := cannot_tell(evidence, limit):
            return NotChecked(reason)
        return Passed(f"off by {distances[worst]:.2g} at most, limit {reasons}")
    bad = sum(1 for value in distances.values() if value > limit.value)
    return Failed(
        f"peer and same split differ by at most {reasons}",
        f"{bad} of {len(distances)} prompts differ by more, prompt {worst} by {distances[worst]:.3g}",
        ("decode",),
        TRUST_NONE,
    )


@CHECKS.check("KV-RIGHT-02", "the answers from pulled KV have the right tokens", _ANSWERED)
def _right_tokens(evidence: Evidence) -> Outcome:
    """Or part ways only where two were so close that the noise can swap them.

    Do as for KV-RIGHT-01.
    """
    limit = answer_limit(evidence)
    pairs = _pairs(traffic_of(evidence), SAME_SPLIT, PEER)
    if not pairs:
        return NotChecked("no prompt has both legs")
    found = [(prompt, tolerance.first_divergence(a.output, b.output)) for prompt, a, b in pairs]
    diverged = [(prompt, divergence) for prompt, divergence in found if divergence is not None]
    bad = [(prompt, d) for prompt, d in diverged if not tolerance.is_explained(d, limit)]
    if not bad:
        ties = f", {len(diverged)} part ways at a tie" if diverged else ""
        return Passed(f"{len(found) - len(diverged)} of {len(found)} equal to the last token{ties}")
    prompt, divergence = bad[0]
    return Failed(
        f"the same tokens, or a tie within {2 * limit.value:.2g}",
        f"prompt {prompt}, token {divergence.position + 1}: {divergence.other} instead of "
        f"{divergence.honest}, which is {divergence.gap:.3g} more likely",
        ("decode",),
        TRUST_NONE,
    )


@CHECKS.check("KV-RIGHT-03", "the prefill server agrees with itself", ("PRE-01", "PRE-04"), warning=True)
def _honest_legs_agree(evidence: Evidence) -> Outcome:
    """Noise beyond the floor makes KV-RIGHT-01 blunter.

    If it stays, vLLM's own prefix cache or its kernels are at fault, not the sharing.
    """
    limit = answer_limit(evidence)
    if limit.noise <= limit.floor:
        return Passed(f"reference and same split off by {limit.noise:.2g} at most")
    return Failed(
        f"reference and same split differ by at most {limit.floor:.2g}",
        f"{limit.noise:.3g}, so the limit of KV-RIGHT-01 was drawn at {limit.value:.2g}",
        ("prefill",),
        ALONE,
    )


def cannot_tell(evidence: Evidence, limit: tolerance.Limit) -> str | None:
    """Return why wrong KV might pass for noise: the same tail after another chunk is answered much alike."""
    traffic = traffic_of(evidence)
    honest = [leg for leg in ledger.of(traffic.legs, SAME_SPLIT) if leg.prompt == JUDGED]
    changed = ledger.of(traffic.legs, CHANGED)
    if not honest or not changed:
        return "the prompt with one chunk changed was not sent"
    if changed[0].error is not None:
        return f"the prompt with one chunk changed was not answered: {changed[0].error}"
    moved = tolerance.distance(honest[0].output, changed[0].output)
    if moved >= tolerance.SENSITIVITY * limit.value:
        return None
    return (
        f"cannot tell right KV from wrong: one chunk changed moves the answer by {moved:.2g}, "
        f"{moved / limit.value:.2g} times the limit and not {tolerance.SENSITIVITY:g} times"
    )


def answer_limit(evidence: Evidence) -> tolerance.Limit:
    """Return the limit for differences of log-probabilities in this run."""
    dtypes = {fingerprint.kv_dtype for fingerprint in fingerprints(evidence).values()} or {None}
    pairs = _pairs(traffic_of(evidence), REFERENCE, SAME_SPLIT)
    noises = [tolerance.distance(a.output, b.output) for _, a, b in pairs]
    return max((tolerance.make_limit(dtype, noises) for dtype in dtypes), key=lambda limit: limit.value)


def _pairs(traffic: Traffic, a: str, b: str) -> list[tuple[int, Leg, Leg]]:
    """Return the two legs of each prompt that has both."""
    second = {leg.prompt: leg for leg in ledger.of(traffic.legs, b)}
    first = ledger.of(traffic.legs, a)
    return [(leg.prompt, leg, second[leg.prompt]) for leg in first if leg.prompt in second]
