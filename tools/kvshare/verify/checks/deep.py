"""Whether the user's own model and options are served right as well: only with `verify --deep`."""

from collections.abc import Iterator

from kvshare.checking.registry import Category, Failed, NotChecked, NotNeeded, Outcome, Passed
from kvshare.servers.readings import Sources
from kvshare.verify import ledger, tolerance
from kvshare.verify.checks.answers import answer_limit, cannot_tell
from kvshare.verify.checks.shared import ALONE, docker, leg_found, logs, look_at, traffic_of
from kvshare.verify.evidence import (
    ADAPTERS,
    ANEW,
    AT_ONCE,
    EDGES,
    HUNG_UP,
    PREEMPTED,
    SALTS,
    Deep,
    Evidence,
    Leg,
    Trial,
)

CHECKS: Category[Evidence] = Category("deep")
_PROVEN = ("KV-PEER-01",)
_IMAGES = 'make verify ARGS="--only images" names a patch that is missing'
_NOT_SENT = NotChecked("its requests were not sent: they come with --deep")


@CHECKS.check("DEEP-01", "a `cache_salt` is answered from its own KV alone", _PROVEN)
def _salts(evidence: Evidence) -> Outcome:
    """Nothing for another salt or for none, all whole chunks for the same: [security.md](security.md).

    Tenants share KV: IMG-02 says whether `identity` is in the image. Until then keep one tenant a pair.

    Every check of this category counts the tokens that came from the peer, and compares an answer, within the
    [tolerance](#tolerance), with the same prompt's that decode computes itself under a salt that nobody used.
    One that cannot tell right KV from wrong says so as KV-RIGHT-01 does.
    """
    return _judged(evidence, SALTS)


@CHECKS.check("DEEP-02", "a prompt that ends at a chunk's edge takes its whole chunks alone", _PROVEN)
def _edges(evidence: Evidence) -> Outcome:
    """A token less than whole chunks, as many, and one more; a prompt's last token is always computed."""
    return _judged(evidence, EDGES)


@CHECKS.check("DEEP-03", "an adapter is answered from its own KV alone", _PROVEN)
def _adapters(evidence: Evidence) -> Outcome:
    """The model and the first two adapters that both servers list: each is asked what another computed.

    Trust no answer of these adapters: IMG-02 says whether `identity` is in the image.
    """
    deep = traffic_of(evidence).deep
    if deep is not None and not deep.adapters:
        return NotNeeded("no adapter is listed in /v1/models of both servers")
    return _judged(evidence, ADAPTERS)


@CHECKS.check("DEEP-04", "prompts that come at once get each its own KV", _PROVEN)
def _at_once(evidence: Evidence) -> Outcome:
    """Eight of them, or fewer long ones; vLLM counts their tokens in one sum.

    Too few tokens: LMCache gave up at `lookup_timeout_ms` (KV-PEER-06), the link or the machine is too busy.
    """
    return _judged(evidence, AT_ONCE)


@CHECKS.check("DEEP-05", "requests that are preempted are answered right", _PROVEN)
def _preempted(evidence: Evidence) -> Outcome:
    """More are pulled at once than decode's own memory holds; vLLM drops some of them and resumes them later.

    Where 32 requests cannot fill it, or `--max-num-seqs` keeps them out, nothing is preempted and nothing
    is proven: with less memory (`--kv-cache-memory-bytes` in VLLM_ARGS) it would be.
    """
    deep = traffic_of(evidence).deep
    if deep is None:
        return _NOT_SENT
    pressure = deep.pressure
    if pressure is None:
        return NotChecked("decode's /metrics do not tell how many tokens its memory holds")
    memory = f"memory for {pressure.memory_tokens:,} tokens"
    if not pressure.requests:
        return NotChecked(f"{memory} is too much to fill")
    outcome = _judged(evidence, PREEMPTED)
    if isinstance(outcome, Passed) and not pressure.preemptions:
        return NotChecked(
            f"{memory} is too much to fill: {pressure.requests} requests of {pressure.tokens:,} tokens at "
            "once, and none was preempted"
        )
    if isinstance(outcome, Passed):
        times = f"{pressure.preemptions} preemption{'s' if pressure.preemptions > 1 else ''}"
        return Passed(f"{times}; {outcome.detail}")
    return outcome


@CHECKS.check("DEEP-06", "clients that hang up in a pull leave nothing behind", _PROVEN)
def _hung_up(evidence: Evidence) -> Outcome:
    """Five, at different moments of it. No request, no vLLM block and no object of LMCache's stays held.

    Nor does a server start anew, and the same prompt is answered right afterwards. What stays held is lost to
    all others until that server is started anew.
    """
    deep = traffic_of(evidence).deep
    if deep is None or deep.hang_ups is None:
        return _NOT_SENT
    seen = deep.hang_ups
    if seen.restarted:
        node = seen.restarted[0]
        expected = "servers that go on, whoever hangs up"
        return Failed(
            expected, f"{node} was started anew or is gone", seen.restarted, look_at(evidence, node)
        )
    if left := ledger.holds_more(seen.before, seen.after):
        expected = f"nothing held for {seen.cut} clients that hung up"
        restart = docker(evidence, left[0], "restart")
        fix = f"{ALONE}, with --deep; where it stays: {restart}"
        return Failed(expected, f"{left[0]}: {_kept(deep, left[0])}", left, fix)
    if not seen.cut:
        return NotChecked(f"all of {seen.sent} answers ended before their clients hung up")
    outcome = _judged(evidence, HUNG_UP)
    hung_up = f"{seen.cut} of {seen.sent} hung up"
    return Passed(f"{hung_up}; {outcome.detail}") if isinstance(outcome, Passed) else outcome


# --- judging one kind ---------------------------------------------------------------------------------------


def _judged(evidence: Evidence, kind: str) -> Outcome:
    """Judge a kind's trials: all requests answered, their tokens from where they must come, answers right."""
    deep = traffic_of(evidence).deep
    trials = [trial for trial in deep.trials if trial.kind == kind] if deep else []
    if not trials:
        return _NOT_SENT
    for judge in (_unanswered, _wrong_tokens, _not_anew, _wrong_answers):
        failures = (failed for trial in trials if (failed := judge(evidence, trial)))
        if (first := next(failures, None)) is not None:
            return first
    limit = answer_limit(evidence)
    if reason := cannot_tell(evidence, limit):
        return NotChecked(reason)
    worst = max(off for trial in trials for _, off in _distances(trial))
    answers = sum(len(trial.asked) for trial in trials)
    pulled = sum(trial.sources.external_kv_transfer for trial in trials if trial.sources)
    many = f"{answers} answers" if answers > 1 else "one answer"
    return Passed(f"{many}, {pulled} tokens pulled, off by {worst:.2g} at most")


def _unanswered(evidence: Evidence, trial: Trial) -> Failed | None:
    legs = (*trial.held, *trial.asked, *trial.honest)
    bad = next((leg for leg in legs if leg.error is not None), None)
    if bad is None:
        return None
    return Failed(
        "an answer to every request", f"{trial.what}: {bad.error}", (bad.node,), logs(evidence, bad.node)
    )


def _wrong_tokens(evidence: Evidence, trial: Trial) -> Failed | None:
    fix = _IMAGES if trial.kind in (SALTS, ADAPTERS) else logs(evidence, "decode", trial.asked[0].request_id)
    if trial.sources is None:
        found = "the server does not count vllm:prompt_tokens_by_source"
        return Failed("prompt tokens by source", f"{trial.what}: {found}", ("decode",), fix)
    if trial.due is None:
        return None
    seen, sent = trial.sources, sum(leg.tokens for leg in trial.asked)
    if seen.external_kv_transfer != trial.due or seen.local_cache_hit:
        own = f", and {seen.local_cache_hit} from its own cache" if seen.local_cache_hit else ""
        found = f"{trial.what}: {seen.external_kv_transfer}{own}"
        return Failed(f"{trial.due} tokens from the peer", found, ("decode",), fix)
    if seen.total != sent:
        found = f"{trial.what}: {seen.total} counted"
        return Failed(f"{sent} prompt tokens", found, ("decode",), f"{ALONE}, with --deep")
    return None


def _not_anew(_: Evidence, trial: Trial) -> Failed | NotChecked | None:
    """Judge whether what was to be computed anew was: without that there is nothing to compare with."""
    warm = next((leg for leg in trial.honest if leg.leg == ANEW and not _is_cold(leg)), None)
    if warm is None:
        return None
    found = f"{trial.what}, computed anew: {leg_found(warm)}"
    if trial.kind != SALTS:
        return NotChecked(f"nothing to compare with (DEEP-01): {found}")
    return Failed("no KV for a salt that nobody used", found, ("decode",), _IMAGES)


def _wrong_answers(evidence: Evidence, trial: Trial) -> Failed | None:
    limit = answer_limit(evidence)
    bad = [(leg, off) for leg, off in _distances(trial) if off > limit.value]
    parted = [d for d in _divergences(trial) if not tolerance.is_explained(d, limit)]
    if not bad and not parted:
        return None
    many = f"{len(bad)} of {len(trial.asked)} answers" if len(trial.asked) > 1 else "the answer"
    if bad:
        leg, off = max(bad, key=lambda one: one[1])
        found = f"{trial.what}: {many} off by more, {leg.request_id} by {off:.3g}"
    else:
        found = f"{trial.what}: token {parted[0].position + 1} is another, {parted[0].gap:.3g} less likely"
    expected = f"off by {limit.value:.2g} at most from the right answer"
    return Failed(expected, found, ("decode",), f"trust no answer of this pair; {_IMAGES}")


def _distances(trial: Trial) -> Iterator[tuple[Leg, float]]:
    for asked, honest in zip(trial.asked, trial.honest, strict=True):
        yield asked, tolerance.distance(honest.output, asked.output)


def _divergences(trial: Trial) -> Iterator[tolerance.Divergence]:
    for asked, honest in zip(trial.asked, trial.honest, strict=True):
        if divergence := tolerance.first_divergence(honest.output, asked.output):
            yield divergence


def _is_cold(leg: Leg) -> bool:
    return leg.sources == Sources(local_compute=leg.tokens)


def _kept(deep: Deep, node: str) -> str:
    assert deep.hang_ups is not None, "only what hung up keeps"
    held = deep.hang_ups.after.get(node)
    if held is None:
        return "does not tell what it holds"
    return (
        f"{held.running:.0f} running, {held.waiting:.0f} waiting, {held.kv_usage:.1%} of its memory, "
        f"{held.pinned:.0f} objects of LMCache's pinned"
    )
