"""The checks, in causal order: a cause stands before its symptoms, so the first failure names the cause.

A check reads evidence and nothing else. Its id is stable, names its section in docs/checks.md and its test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kvshare.checking.registry import Failed, NotChecked, Outcome, Passed, Registry
from kvshare.verify import ledger, tolerance
from kvshare.verify.evidence import (
    CONTROL,
    PEER,
    REFERENCE,
    SAME_SPLIT,
    Container,
    Counters,
    Evidence,
    Fingerprint,
    Leg,
    Sources,
    Traffic,
)

CATEGORIES = (
    "engines",
    "images",
    "configuration",
    "client",
    "controller",
    "prefill",
    "decode",
    "kv-transfer",
    "answers",
    "verdict",
)
TRAFFIC_CATEGORIES = CATEGORIES[CATEGORIES.index("client") :]
SHARED_PATCHES = (
    "message-defaults",
    "progress-delay",
    "lookup-loop",
    "pull-loop",
    "lookup-timeout",
    "double-free",
    "same-rank",
    "registration",
    "full-sync",
    "peer-loops",
    "dead-peer",
    "worker-address",
    "p2p-threshold",
    "lanes",
    "peer-introduction",
    "held-prefix",
    "export-interval",
)
PATCHES = {"cuda": ("packed-kv", *SHARED_PATCHES), "cpu": ("cpu-connector", *SHARED_PATCHES)}

REGISTRY: Registry[Evidence] = Registry(
    CATEGORIES, where=lambda evidence, services: evidence.stack.where(*services)
)
_check, select, evaluate = REGISTRY.check, REGISTRY.select, REGISTRY.evaluate


def needs_traffic(selected: Iterable[str]) -> bool:
    """Return whether any of the checks judges what the client container sees."""
    return any(check.category in TRAFFIC_CATEGORIES for check in REGISTRY if check.id in set(selected))


# --- engines ------------------------------------------------------------------------------------------------


@_check("ENG-01", "engines", "every Docker engine answers")
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


@_check("ENG-02", "engines", "controller, prefill and decode run and are healthy", ("ENG-01",), warning=True)
def _containers_run(evidence: Evidence) -> Outcome:
    bad = [c for c in evidence.containers if c.state != "running" or c.health not in ("healthy", "")]
    if not bad:
        return Passed()
    return Failed(
        "running and healthy",
        "; ".join(f"{c.service} is {_state(c)}" for c in bad),
        tuple(c.service for c in bad),
        _look_at(evidence, bad[0].service),
    )


# --- images -------------------------------------------------------------------------------------------------


@_check("IMG-01", "images", "controller, prefill and decode run one image", warning=True)
def _one_image(evidence: Evidence) -> Outcome:
    images = {c.service: c.image_id for c in evidence.containers if c.image_id}
    if len(set(images.values())) <= 1:
        return Passed(next((_short(image) for image in images.values()), "")) if images else _nothing_runs()
    found = ", ".join(f"{service}={_short(image)}" for service, image in images.items())
    return Failed(
        "one image id", found, tuple(images), "make image, and `docker save | docker load` to the other node"
    )


@_check("IMG-02", "images", "the image carries the patches")
def _patched(evidence: Evidence) -> Outcome:
    running = [c for c in evidence.containers if c.state == "running"]
    if not running:
        return _nothing_runs()
    expected = PATCHES[evidence.stack.device]
    bad = [c for c in running if c.fingerprint is None or not set(expected) <= set(c.fingerprint.patches)]
    if not bad:
        return Passed(", ".join(expected))
    found = "; ".join(
        f"{c.service}: {c.error}"
        if c.fingerprint is None
        else f"{c.service}: {_listed(c.fingerprint.patches)}"
        for c in bad
    )
    return Failed(
        f"{_listed(expected)} everywhere", found, tuple(c.service for c in bad), "make image, then make up"
    )


# --- configuration ------------------------------------------------------------------------------------------


def _equal(
    what: str, read: Callable[[Fingerprint], Any], fix: str, controller_too: bool = False
) -> Callable[[Evidence], Outcome]:
    """Return a judge that wants one value of ``read`` on both servers, or on all three engines."""

    def judge(evidence: Evidence) -> Outcome:
        prints = _fingerprints(evidence, controller_too)
        if len(prints) < 2:
            return NotChecked(f"of the engines only {_listed(prints)} told its configuration")
        values = {service: read(fingerprint) for service, fingerprint in prints.items()}
        if len({repr(value) for value in values.values()}) == 1:
            return Passed(str(next(iter(values.values()))))
        found = ", ".join(f"{service}={value}" for service, value in values.items())
        return Failed(f"one {what}", found, tuple(values), fix)

    return judge


def _each(
    wrong: Callable[[Fingerprint], Sequence[str]], expected: str, fix: str
) -> Callable[[Evidence], Outcome]:
    """Return a judge that wants nothing ``wrong`` on each server."""

    def judge(evidence: Evidence) -> Outcome:
        prints = _fingerprints(evidence)
        if not prints:
            return NotChecked("no server told its configuration")
        faults = {service: wrong(fingerprint) for service, fingerprint in prints.items()}
        bad = {service: list(fault) for service, fault in faults.items() if fault}
        if not bad:
            return Passed(expected)
        found = "; ".join(f"{service}: {', '.join(fault)}" for service, fault in bad.items())
        return Failed(expected, found, tuple(bad), fix)

    return judge


def _setting(name: str, expected: Any) -> Callable[[Fingerprint], Sequence[str]]:
    def wrong(fingerprint: Fingerprint) -> Sequence[str]:
        found = fingerprint.lmcache.get(name)
        return () if found == expected else (f"{name}={_yaml(found)}",)

    return wrong


def _reuse_off(fingerprint: Fingerprint) -> Sequence[str]:
    if fingerprint.kv_transfer_config is None:
        return ("no --kv-transfer-config",)
    names = ("enable_p2p", "enable_controller", "local_cpu")
    return tuple(fault for name in names for fault in _setting(name, True)(fingerprint))


def _fails_on_lost_kv(fingerprint: Fingerprint) -> Sequence[str]:
    if fingerprint.kv_transfer_config is None:  # CONF-06 says so
        return ()
    policy = fingerprint.kv_transfer_config.get("kv_load_failure_policy", "fail, vLLM's default")
    return () if policy == "recompute" else (f"kv_load_failure_policy={policy}",)


def _versions(fingerprint: Fingerprint) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(fingerprint.versions.items()))


def _dtypes(fingerprint: Fingerprint) -> str:
    kept = fingerprint.kv_cache_dtype or "auto"
    return str(fingerprint.dtype) if kept == "auto" else f"{fingerprint.dtype} with {kept} KV"


_SETTING_FIX = (
    "correct configs/lmcache.yaml or the LMCACHE_ variable that overrides it, then make image and make up"
)
_ONE_IMAGE_FIX = "run one image everywhere: make image, then make up"

_check("CONF-01", "configuration", "PYTHONHASHSEED is the same")(
    _equal(
        "PYTHONHASHSEED",
        lambda f: f.python_hash_seed,
        "set PYTHONHASHSEED in compose.yaml (shared), then make up",
        controller_too=True,
    )
)
_check("CONF-02", "configuration", "the model is named the same")(
    _equal("model string", lambda f: f.model, "set one MODEL in .env, then make up")
)
_check("CONF-03", "configuration", "the chunk size is the same")(
    _equal("chunk_size", lambda f: f.lmcache.get("chunk_size"), _SETTING_FIX)
)
_check("CONF-04", "configuration", "the dtype is the same")(
    _equal(
        "dtype",
        _dtypes,
        "set KVSHARE_DTYPE once in compose.yaml (server), one KV_CACHE_DTYPE in .env, then make up",
    )
)
_check("CONF-05", "configuration", "asynchronous loading is on (without it no peer is ever asked)")(
    _each(_setting("enable_async_loading", True), "enable_async_loading=true", _SETTING_FIX)
)
_check("CONF-06", "configuration", "reuse is on")(
    _each(
        _reuse_off,
        "--kv-transfer-config with enable_p2p, enable_controller and local_cpu",
        "set KVSHARE_KV_TRANSFER_CONFIG in compose.yaml, the rest in configs/lmcache.yaml, then make up",
    )
)
_check("CONF-07", "configuration", "KV that does not arrive is recomputed")(
    _each(
        _fails_on_lost_kv,
        "kv_load_failure_policy=recompute",
        'set "kv_load_failure_policy": "recompute" in KVSHARE_KV_TRANSFER_CONFIG, then make up',
    )
)
_check("CONF-08", "configuration", "the versions are the same")(
    _equal("set of versions", _versions, _ONE_IMAGE_FIX, controller_too=True)
)
_check("CONF-09", "configuration", "the hash algorithm is the same")(
    _equal("hash algorithm", lambda f: f.lmcache.get("pre_caching_hash_algorithm"), _SETTING_FIX)
)


# --- client -----------------------------------------------------------------------------------------------


@_check("CLIENT-01", "client", "the client container ran and reported")
def _client_ran(evidence: Evidence) -> Outcome:
    if evidence.traffic is not None:
        return Passed(f"{evidence.traffic.seconds:.0f} s")
    if evidence.client_error is None:
        return NotChecked("no check of this run needs traffic")
    return Failed("evidence from the client container", evidence.client_error, (), "make status")


# --- controller ---------------------------------------------------------------------------------------------


@_check("CTRL-01", "controller", "the controller answers", ("CLIENT-01",))
def _controller_answers(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    if traffic.controller.answers:
        return Passed(evidence.stack.controller.url)
    return _down(
        evidence,
        "controller",
        f"{evidence.stack.controller.url}/controller/workers",
        traffic.controller.error,
    )


@_check("CTRL-02", "controller", "its pull loop takes messages", ("CTRL-01",))
def _pull_loop_lives(evidence: Evidence) -> Outcome:
    samples = _traffic(evidence).controller.pull
    if len(samples) < 2:
        return NotChecked("the controller's /metrics shows no PULL socket")
    first, last = samples[0], samples[-1]
    read = int(last.messages - first.messages)
    if read == 0 and samples[-2].pending and last.pending:
        return Failed(
            "messages on the pull port are read",
            f"none was read during the run and some wait, {int(last.messages)} since the controller's start: "
            "one message that it could not decode has ended the loop",
            ("controller",),
            _restart_command(evidence, "controller"),
        )
    return Passed(f"{read} messages read")


@_check("CTRL-03", "controller", "no peer_init_url error in its log")
def _no_decoding_error(evidence: Evidence) -> Outcome:
    errors = evidence.logs.controller_errors
    if errors is None:
        return NotChecked("the controller's log cannot be read")
    if not errors:
        return Passed()
    return Failed(
        "every worker's registration is understood",
        f"{len(errors)} times, the last: {errors[-1]}",
        ("controller",),
        _ONE_IMAGE_FIX,
    )


@_check("CTRL-04", "controller", "the workers are registered under their addresses", ("CTRL-01",))
def _workers_registered(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    up = [
        server
        for server, probe in (
            (evidence.stack.prefill, traffic.prefill),
            (evidence.stack.decode, traffic.decode),
        )
        if probe.healthy
    ]
    if not up:
        return NotChecked("no server is up, see PRE-01 and DEC-01")
    urls = {worker.instance: worker.peer_init_url for worker in traffic.controller.workers}
    bad = [server for server in up if urls.get(server.instance) != server.peer_init_url]
    if not bad:
        return Passed(", ".join(f"{server.instance} at {server.peer_init_url}" for server in up))
    found = ", ".join(
        f"{s.instance} {'at ' + str(urls[s.instance]) if s.instance in urls else 'missing'}" for s in bad
    )
    return Failed(
        ", ".join(f"{server.instance} at {server.peer_init_url}" for server in bad),
        found,
        tuple(server.service for server in bad),
        _restart_command(evidence, bad[0].service),
    )


# --- prefill and decode -------------------------------------------------------------------------------------


@_check("PRE-01", "prefill", "the prefill server answers", ("CLIENT-01",))
def _prefill_up(evidence: Evidence) -> Outcome:
    probe = _traffic(evidence).prefill
    if probe.healthy:
        return Passed(evidence.stack.prefill.url)
    return _down(evidence, "prefill", f"{evidence.stack.prefill.url}/health", probe.error)


@_check("PRE-02", "prefill", "it computes a fresh prompt itself", ("PRE-01",))
def _cold_is_cold(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    legs = ledger.of(traffic.legs, REFERENCE)
    bad = [leg for leg in legs if leg.sources != Sources(local_compute=leg.tokens)]
    if not bad:
        return _complete(legs, traffic, f"{len(legs)} prompts of {traffic.spec.prompt_tokens} tokens")
    return Failed(
        "every token from local_compute",
        _leg_found(bad[0]),
        ("prefill",),
        _after_leg(
            evidence, bad[0], "verify again with another --seed, with no other traffic on the servers"
        ),
    )


@_check("PRE-03", "prefill", "the controller learns of its KV", ("PRE-01", "CTRL-01"))
def _admitted(evidence: Evidence) -> Outcome:
    admissions = _traffic(evidence).admissions
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
        _logs_command(evidence, "prefill"),
    )


@_check("PRE-04", "prefill", "it answers again from its own prefix cache", ("PRE-01",))
def _same_split(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    expected = _expected(traffic)
    legs = ledger.of(traffic.legs, SAME_SPLIT)
    bad = [leg for leg in legs if leg.sources is None or leg.sources.local_cache_hit != expected]
    if not bad:
        return _complete(legs, traffic, f"{expected} tokens a prompt, the honest answer to compare with")
    return Failed(
        f"{expected} tokens from local_cache_hit",
        _leg_found(bad[0]),
        ("prefill",),
        _after_leg(
            evidence, bad[0], "keep vLLM's prefix caching on, and give it memory for the prompts of one run"
        ),
    )


@_check("DEC-01", "decode", "the decode server answers", ("CLIENT-01",))
def _decode_up(evidence: Evidence) -> Outcome:
    probe = _traffic(evidence).decode
    if probe.healthy:
        return Passed(evidence.stack.decode.url)
    return _down(evidence, "decode", f"{evidence.stack.decode.url}/health", probe.error)


@_check("DEC-02", "decode", "it answers every request", ("DEC-01",))
def _decode_answers(evidence: Evidence) -> Outcome:
    legs = [leg for leg in _traffic(evidence).legs if leg.node == "decode"]
    bad = [leg for leg in legs if leg.error is not None]
    if not legs:
        return NotChecked("no request was sent to decode")
    if not bad:
        return Passed(f"{len(legs)} of {len(legs)}")
    return Failed(
        f"{len(legs)} answers",
        f"{len(legs) - len(bad)}; {_leg_found(bad[0])}",
        ("decode",),
        _logs_command(evidence, "decode"),
    )


# --- kv-transfer --------------------------------------------------------------------------------------------

_BOTH_UP = ("PRE-01", "DEC-01", "DEC-02")


@_check(
    "KV-PEER-01",
    "kv-transfer",
    "decode takes exactly the whole chunks from its peer",
    _BOTH_UP,
)
def _pulled(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    expected, legs = _expected(traffic), ledger.of(traffic.legs, PEER)
    bad = ledger.not_pulled(legs, expected)
    if not bad:
        return _complete(
            legs, traffic, f"{expected} of {traffic.spec.prompt_tokens} tokens in each of {len(legs)} prompts"
        )
    return Failed(
        f"external_kv_transfer +{expected} for each prompt",
        f"{len(bad)} of {len(legs)} prompts differ; {_leg_found(bad[0])}{_gave_up(evidence, bad[0])}",
        ("decode",),
        _logs_command(evidence, "decode", bad[0].request_id),
    )


@_check("KV-PEER-02", "kv-transfer", "the ledger adds up", _BOTH_UP)
def _ledger_balances(evidence: Evidence) -> Outcome:
    legs = _traffic(evidence).legs
    bad = ledger.off_balance(legs)
    if not bad:
        return Passed(
            f"{sum(leg.tokens for leg in legs)} prompt tokens in {len(legs)} requests, each accounted for"
        )
    return Failed(
        "local_compute + local_cache_hit + external_kv_transfer = prompt tokens, in every request",
        _leg_found(bad[0]),
        (bad[0].node,),
        _after_leg(evidence, bad[0], "verify with no other traffic on the servers"),
    )


@_check("KV-PEER-03", "kv-transfer", "the owner counts the transfers", ("KV-PEER-01",))
def _owner_sent(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    start, end = traffic.owner_start, traffic.owner_end
    if start is None or end is None:
        return NotChecked("the prefill server's /metrics cannot be read")
    pulls = len(ledger.of(traffic.legs, PEER))
    sent = round(end.transfers - start.transfers)
    if sent >= pulls:
        seconds = (end.transfer_seconds - start.transfer_seconds) / sent
        return Passed(f"{sent} transfers, {seconds * 1000:.0f} ms each")
    return Failed(
        f"lmcache:p2p_time_to_transfer_count +{pulls} or more",
        f"+{sent}",
        ("prefill",),
        _logs_command(evidence, "prefill", "P2P transfer finished"),
    )


@_check("KV-PEER-04", "kv-transfer", "decode logs `LMCache hit tokens: X` for each prompt", ("KV-PEER-01",))
def _logged(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    if evidence.logs.decode_hits is None:
        return NotChecked("decode's log cannot be read")
    expected = _expected(traffic)
    logged = {leg.request_id: _logged_hit(evidence, leg) for leg in ledger.of(traffic.legs, PEER)}
    bad = {request: hit for request, hit in logged.items() if hit != expected}
    if not bad:
        return Passed(f"X = {expected}, {len(logged)} times")
    request, hit = next(iter(bad.items()))
    return Failed(
        f"LMCache hit tokens: {expected} for each of {len(logged)} requests",
        f"{'no line' if hit is None else hit} for {request}, {len(bad)} of {len(logged)} differ",
        ("decode",),
        _logs_command(evidence, "decode", "LMCache hit tokens"),
    )


@_check("KV-PEER-05", "kv-transfer", "LMCache on decode counts the hits", ("KV-PEER-01",))
def _hits_counted(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    start, end = traffic.decode_start, traffic.decode_end
    if start is None or end is None:
        return NotChecked("the decode server's /metrics cannot be read")
    expected = _expected(traffic) * len(ledger.of(traffic.legs, PEER))
    hits, requested = (
        round(end.hit_tokens - start.hit_tokens),
        round(end.requested_tokens - start.requested_tokens),
    )
    if hits >= expected:
        return Passed(f"num_hit_tokens +{hits} of {requested} requested, {_hit_rate(end, hits, requested)}")
    return Failed(
        f"lmcache:num_hit_tokens +{expected}",
        f"+{hits} of {requested} requested, {_hit_rate(end, hits, requested)}",
        ("decode",),
        _logs_command(evidence, "decode", "Retrieved"),
    )


@_check("KV-PEER-06", "kv-transfer", "no lookup runs into its timeout", ("CLIENT-01",), warning=True)
def _no_lookup_timeout(evidence: Evidence) -> Outcome:
    legs = _traffic(evidence).legs
    if not legs:
        return NotChecked("no request was sent")
    late = [leg for leg in legs if _gave_up(evidence, leg)]
    if not late:
        return Passed()
    return Failed(
        "LMCache answers within lookup_timeout_ms",
        f"{', '.join(f'{leg.leg} of prompt {leg.prompt}' for leg in late)} waited for it in vain, "
        "and the times below include the wait",
        tuple(dict.fromkeys(leg.node for leg in late)),
        _logs_command(evidence, late[0].node, late[0].request_id),
    )


@_check("KV-CTL-01", "kv-transfer", "a prompt that nobody holds moves nothing", _BOTH_UP)
def _control_moves_nothing(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    controls = ledger.of(traffic.legs, CONTROL)
    if not controls:
        return NotChecked("no control was sent")
    start, after = traffic.owner_start, traffic.owner_after_control
    sent = 0 if start is None or after is None else round(after.transfers - start.transfers)
    asked = [one for one in evidence.logs.owner_lookups or () if any(_is_of(one, leg) for leg in controls)]
    if ledger.moved_nothing(controls) and not sent and not asked:
        return Passed(f"{sum(leg.tokens for leg in controls)} tokens computed, 0 from a peer, 0 transfers")
    return Failed(
        "every token from local_compute and no transfer at the owner",
        f"{_leg_found(controls[0])}; {sent + len(asked)} transfers at the owner",
        ("decode", "prefill"),
        "verify again with another --seed, with no other traffic on the servers",
    )


# --- answers ------------------------------------------------------------------------------------------------

_ANSWERED = ("PRE-01", "PRE-04", "DEC-01", "DEC-02")


@_check("KV-RIGHT-01", "answers", "the answers from pulled KV have the right log-probabilities", _ANSWERED)
def _right_logprobs(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    limit = answer_limit(evidence)
    distances = {
        prompt: tolerance.distance(a.output, b.output) for prompt, a, b in _pairs(traffic, SAME_SPLIT, PEER)
    }
    if not distances:
        return NotChecked("no prompt has both legs")
    worst = max(distances, key=lambda prompt: distances[prompt])
    if distances[worst] <= limit.value:
        return Passed(f"off by {distances[worst]:.2g} at most, limit {limit.value:.2g} ({_reasons(limit)})")
    bad = sum(1 for value in distances.values() if value > limit.value)
    return Failed(
        f"peer and same split differ by at most {limit.value:.2g} ({_reasons(limit)})",
        f"{bad} of {len(distances)} prompts differ by more, prompt {worst} by {distances[worst]:.3g}",
        ("decode",),
        "trust no answer of this pair: docs/patches.md, packed KV",
    )


@_check("KV-RIGHT-02", "answers", "the answers from pulled KV have the right tokens", _ANSWERED)
def _right_tokens(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    limit = answer_limit(evidence)
    pairs = _pairs(traffic, SAME_SPLIT, PEER)
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
        "trust no answer of this pair: docs/patches.md, packed KV",
    )


@_check("KV-RIGHT-03", "answers", "the prefill server agrees with itself", ("PRE-01", "PRE-04"), warning=True)
def _honest_legs_agree(evidence: Evidence) -> Outcome:
    limit = answer_limit(evidence)
    if limit.noise <= limit.floor:
        return Passed(f"reference and same split off by {limit.noise:.2g} at most")
    return Failed(
        f"reference and same split differ by at most {limit.floor:.2g}",
        f"{limit.noise:.3g}, so the limit of KV-RIGHT-01 was drawn at {limit.value:.2g}",
        ("prefill",),
        "verify with no other traffic on the servers",
    )


# --- verdict ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worth:
    """Whether a pull pays; ``gain`` and ``peer_over_cold`` compare medians of time to first token."""

    verdict: str
    gain: float
    peer_over_cold: float

    @property
    def sentence(self) -> str:
        """The verdict and the gain in words."""
        return f"{self.verdict}, first token {abs(self.gain):.0%} {'sooner' if self.gain > 0 else 'later'}"


def worth(traffic: Traffic) -> Worth | None:
    """Return the verdict, or None if a leg has no time.

    A pull pays if it beats both cold legs: the reference on prefill and the control on decode.
    """
    cold, peer, control = (ledger.median_ttft_ms(traffic.legs, leg) for leg in (REFERENCE, PEER, CONTROL))
    if cold is None or peer is None:
        return None
    pays = peer < cold and (control is None or peer < control)
    return Worth("worth it" if pays else "not worth it here", 1 - peer / cold, peer / cold)


@_check(
    "WORTH-01",
    "verdict",
    "a pull beats computing the prompt again",
    ("KV-PEER-01", "KV-RIGHT-01"),
    warning=True,
)
def _worth_it(evidence: Evidence) -> Outcome:
    traffic = _traffic(evidence)
    verdict = worth(traffic)
    if verdict is None:
        return NotChecked("a leg has no time")
    cold, peer, control = (
        ledger.median_ttft_ms(traffic.legs, leg) or 0.0 for leg in (REFERENCE, PEER, CONTROL)
    )
    times = f"peer {peer:.0f} ms, cold {cold:.0f} ms on prefill and {control:.0f} ms on decode"
    if verdict.verdict == "worth it":
        return Passed(f"{verdict.sentence}: {times}")
    return Failed(
        "a pulled prompt's first token comes sooner than a computed one's",
        f"{verdict.sentence}: {times}",
        ("decode",),
        "try longer prompts (--prompt-tokens), or see what the link gives: docs/checks.md",
    )


# --- words --------------------------------------------------------------------------------------------------


def answer_limit(evidence: Evidence) -> tolerance.Limit:
    """Return the limit for differences of log-probabilities in this run."""
    prints = _fingerprints(evidence)
    dtypes = {fingerprint.kv_dtype for fingerprint in prints.values()} or {None}
    pairs = _pairs(_traffic(evidence), REFERENCE, SAME_SPLIT)
    noises = [tolerance.distance(a.output, b.output) for _, a, b in pairs]
    return max((tolerance.make_limit(dtype, noises) for dtype in dtypes), key=lambda limit: limit.value)


def _pairs(traffic: Traffic, a: str, b: str) -> list[tuple[int, Leg, Leg]]:
    """Return the two legs of each prompt that has both."""
    second = {leg.prompt: leg for leg in ledger.of(traffic.legs, b)}
    first = ledger.of(traffic.legs, a)
    return [(leg.prompt, leg, second[leg.prompt]) for leg in first if leg.prompt in second]


def _traffic(evidence: Evidence) -> Traffic:
    assert evidence.traffic is not None, "checks of traffic need CLIENT-01"
    return evidence.traffic


def _expected(traffic: Traffic) -> int:
    return ledger.reusable(traffic.spec.prompt_tokens, traffic.spec.chunk_size)


def _fingerprints(evidence: Evidence, controller_too: bool = False) -> dict[str, Fingerprint]:
    """Return the servers' fingerprints by service, and the controller's if asked."""
    found = {
        c.service: c.fingerprint for c in evidence.containers if controller_too or c.service != "controller"
    }
    return {service: fingerprint for service, fingerprint in found.items() if fingerprint is not None}


def _down(evidence: Evidence, service: str, url: str, error: str | None) -> Failed:
    container = evidence.container(service)
    return Failed(
        f"200 from {url}",
        f"{error or 'no answer'}; the container is {_state(container)}",
        (service,),
        _look_at(evidence, service),
    )


def _look_at(evidence: Evidence, service: str) -> str:
    """Return the command that starts a service which is not there, or shows the log of one that is."""
    if evidence.container(service).state == "missing":
        return f"make up NODE={'decode' if service == 'decode' else 'prefill'}"
    return _logs_command(evidence, service)


def _complete(legs: Sequence[Leg], traffic: Traffic, detail: str) -> Outcome:
    """Return Passed if every prompt has its leg: none of anything is no proof."""
    expected = traffic.spec.prompts + 1  # the warm-up's
    return (
        Passed(detail) if len(legs) == expected else NotChecked(f"{len(legs)} of {expected} legs were sent")
    )


def _after_leg(evidence: Evidence, leg: Leg, otherwise: str) -> str:
    return otherwise if leg.error is None else _logs_command(evidence, leg.node)


def _leg_found(leg: Leg) -> str:
    """Return what a leg came to, in words."""
    what = f"{leg.leg} leg of prompt {leg.prompt}"
    if leg.error is not None:
        return f"{what}: {leg.error}"
    if leg.sources is None:
        return f"{what}: the server does not count vllm:prompt_tokens_by_source"
    s = leg.sources
    return (
        f"{what}: {leg.tokens} prompt tokens, local_compute {s.local_compute}"
        f" + local_cache_hit {s.local_cache_hit} + external_kv_transfer {s.external_kv_transfer}"
    )


def _logged_hit(evidence: Evidence, leg: Leg) -> int | None:
    """Return the hit tokens that decode logged for a leg's request, or None if it logged none."""
    hits = [hit.hit_tokens for hit in evidence.logs.decode_hits or () if _is_of(hit.request_id, leg)]
    return max(hits, default=None)


def _gave_up(evidence: Evidence, leg: Leg) -> str:
    """Return words for a leg's lookup that ran into LMCache's timeout, '' if it did not."""
    timed_out = any(_is_of(request_id, leg) for request_id in evidence.logs.lookup_timeouts)
    return "; LMCache gave up its lookup at lookup_timeout_ms" if timed_out else ""


def _is_of(request_id: str, leg: Leg) -> bool:
    """Return whether a server's request id is the leg's, which vLLM wraps into its own."""
    return f"{leg.request_id}-" in f"{request_id}-"


def _hit_rate(end: Counters, hits: int, requested: int) -> str:
    """Return the hit rate of this run beside the gauge, which reads 1.0 on an idle server."""
    gauge = "" if end.retrieve_hit_rate is None else f" (gauge {end.retrieve_hit_rate:.2f})"
    return f"retrieve_hit_rate {hits / requested if requested else 0:.2f}{gauge}"


def _logs_command(evidence: Evidence, service: str, pattern: str = "") -> str:
    context = evidence.stack.member(service).context
    tail = f" 2>&1 | grep '{pattern}'" if pattern else " --tail 50"
    return f"docker --context {context} logs {evidence.container(service).name}{tail}"


def _restart_command(evidence: Evidence, service: str) -> str:
    context = evidence.stack.member(service).context
    return f"docker --context {context} restart {evidence.container(service).name}"


def _state(container: Container) -> str:
    if container.state == "running":
        return f"running and {container.health}" if container.health else "running"
    return f"exited with code {container.exit_code}" if container.state == "exited" else container.state


def _reasons(limit: tolerance.Limit) -> str:
    return f"floor {limit.floor:.2g}, noise {limit.noise:.2g}"


def _nothing_runs() -> NotChecked:
    return NotChecked("no container of the stack runs")


def _short(image: str) -> str:
    return image.removeprefix("sha256:")[:12]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
