"""Whether prefill computes, keeps and announces KV."""

from __future__ import annotations

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.servers.readings import Sources
from kvshare.verify import ledger
from kvshare.verify.checks.shared import (
    after_leg,
    complete,
    down,
    leg_found,
    logs_command,
    reusable_tokens,
    traffic_of,
)
from kvshare.verify.evidence import REFERENCE, SAME_SPLIT, Evidence

CHECKS: Category[Evidence] = Category("prefill")


@CHECKS.check("PRE-01", "the prefill server answers", ("CLIENT-01",))
def _prefill_up(evidence: Evidence) -> Outcome:
    probe = traffic_of(evidence).prefill
    if probe.healthy:
        return Passed(evidence.stack.prefill.url)
    return down(evidence, "prefill", f"{evidence.stack.prefill.url}/health", probe.error)


@CHECKS.check("PRE-02", "it computes a fresh prompt itself", ("PRE-01",))
def _cold_is_cold(evidence: Evidence) -> Outcome:
    traffic = traffic_of(evidence)
    legs = ledger.of(traffic.legs, REFERENCE)
    bad = [leg for leg in legs if leg.sources != Sources(local_compute=leg.tokens)]
    if not bad:
        return complete(legs, traffic, f"{len(legs)} prompts of {traffic.spec.prompt_tokens} tokens")
    return Failed(
        "every token from local_compute",
        leg_found(bad[0]),
        ("prefill",),
        after_leg(evidence, bad[0], "verify again with another --seed, with no other traffic on the servers"),
    )


@CHECKS.check("PRE-03", "the controller learns of its KV", ("PRE-01", "CTRL-01"))
def _admitted(evidence: Evidence) -> Outcome:
    admissions = traffic_of(evidence).admissions
    if not admissions:
        return NotChecked("no prompt was computed on prefill")
    bad = [admission for admission in admissions if not admission.how]
    if not bad:
        slowest = max(admission.seconds for admission in admissions)
        return Passed(
            f"{admissions[0].expected_keys} chunks a prompt, at most {slowest:.1f} s after the answer"
        )
    return Failed(
        f"{bad[0].expected_keys} new keys of {evidence.stack.prefill.instance} for each prompt",
        f"{bad[0].new_keys} for prompt {bad[0].prompt} after {bad[0].seconds:.0f} s",
        ("prefill", "controller"),
        logs_command(evidence, "prefill"),
    )


@CHECKS.check("PRE-04", "it answers again from its own prefix cache", ("PRE-01",))
def _same_split(evidence: Evidence) -> Outcome:
    traffic = traffic_of(evidence)
    expected = reusable_tokens(traffic)
    legs = ledger.of(traffic.legs, SAME_SPLIT)
    bad = [leg for leg in legs if leg.sources is None or leg.sources.local_cache_hit != expected]
    if not bad:
        return complete(legs, traffic, f"{expected} tokens a prompt, the honest answer to compare with")
    return Failed(
        f"{expected} tokens from local_cache_hit",
        leg_found(bad[0]),
        ("prefill",),
        after_leg(
            evidence, bad[0], "keep vLLM's prefix caching on, and give it memory for the prompts of one run"
        ),
    )
