"""Whether prefill computes, keeps and announces KV."""

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.config.settings import CONTROLLER, MULTIPROCESS
from kvshare.servers.readings import Sources
from kvshare.verify import ledger
from kvshare.verify.checks.shared import (
    ALONE_AND_FRESH,
    answers,
    complete,
    leg_found,
    logs,
    of_leg,
    reusable_tokens,
    traffic_of,
)
from kvshare.verify.evidence import REFERENCE, SAME_SPLIT, Evidence

CHECKS: Category[Evidence] = Category("prefill")


@CHECKS.check("PRE-01", "the prefill server answers", ("CLIENT-01",))
def _prefill_up(evidence: Evidence) -> Outcome:
    """`/health` answers 200, and `/v1/models` names the model."""
    return answers(evidence, "prefill")


@CHECKS.check("PRE-02", "it computes a fresh prompt itself", ("PRE-01",))
def _cold_is_cold(evidence: Evidence) -> Outcome:
    """Every token of the reference leg; otherwise nothing that follows is worth comparing with.

    A `--seed` used before makes prompts that are cached already.
    """
    traffic = traffic_of(evidence)
    legs = ledger.of(traffic.legs, REFERENCE)
    bad = next((leg for leg in legs if leg.sources != Sources(local_compute=leg.tokens)), None)
    if bad is None:
        return complete(legs, traffic, f"{len(legs)} prompts of {traffic.spec.prompt_tokens} tokens")
    fix = of_leg(evidence, bad, ALONE_AND_FRESH)
    return Failed("every token from local_compute", leg_found(bad), ("prefill",), fix)


@CHECKS.check("PRE-03", "the controller learns of its KV", ("PRE-01", "CTRL-01"), sharing=CONTROLLER)
def _admitted(evidence: Evidence) -> Outcome:
    """Its count of prefill's keys rises by each prompt's (with a full cache, its messages say so).

    `degraded` in prefill's log means that NIXL could not start.
    """
    admissions = traffic_of(evidence).admissions
    if not admissions:
        return NotChecked("no prompt was computed on prefill")
    bad = next((admission for admission in admissions if not admission.how), None)
    if bad is None:
        slowest = max(admission.seconds for admission in admissions)
        ranks = evidence.stack.prefill.ranks
        chunks = f"{admissions[0].expected_keys // ranks} chunks a prompt"
        chunks += f" on each of {ranks} ranks" if ranks > 1 else ""
        return Passed(f"{chunks}, at most {slowest:.1f} s after the answer")
    by_rank = f" ({', '.join(f'rank {rank} {new}' for rank, new in enumerate(bad.by_rank))})"
    return Failed(
        f"{bad.expected_keys} new keys of {evidence.stack.prefill.instance} for each prompt",
        f"{bad.new_keys}{by_rank if len(bad.by_rank) > 1 else ''} for prompt {bad.prompt} "
        f"after {bad.seconds:.0f} s",
        ("prefill", "controller"),
        logs(evidence, "prefill"),
    )


@CHECKS.check("PRE-05", "its cache server stores its KV", ("PRE-01", "CACHE-01"), sharing=MULTIPROCESS)
def _stored(evidence: Evidence) -> Outcome:
    """By that server's own count, for each prompt its chunks of every rank. Peers find them from then on.

    None at all: prefill's log says what became of its connection. Fewer: raise `CPU_CACHE_GIB`.
    """
    admissions = traffic_of(evidence).admissions
    if not admissions:
        return NotChecked("no prompt was computed on prefill")
    bad = next((admission for admission in admissions if not admission.how), None)
    if bad is None:
        slowest = max(admission.seconds for admission in admissions)
        return Passed(
            f"{admissions[0].expected_keys} objects a prompt, at most {slowest:.1f} s after the answer"
        )
    return Failed(
        f"{bad.expected_keys} objects stored for each prompt",
        f"{bad.new_keys} for prompt {bad.prompt} after {bad.seconds:.0f} s",
        ("prefill", "prefill-cache"),
        logs(evidence, "prefill-cache"),
    )


@CHECKS.check("PRE-04", "it answers again from its own prefix cache", ("PRE-01",))
def _same_split(evidence: Evidence) -> Outcome:
    """The honest answer with the same split of the work, without LMCache: KV-RIGHT-01 compares with it."""
    traffic = traffic_of(evidence)
    expected, legs = reusable_tokens(traffic), ledger.of(traffic.legs, SAME_SPLIT)
    bad = next((leg for leg in legs if leg.sources is None or leg.sources.local_cache_hit != expected), None)
    if bad is None:
        return complete(legs, traffic, f"{expected} tokens a prompt, the honest answer to compare with")
    fix = "keep vLLM's prefix caching on, and give it memory for the prompts of one run"
    found, fix = leg_found(bad), of_leg(evidence, bad, fix)
    return Failed(f"{expected} tokens from local_cache_hit", found, ("prefill",), fix)
