"""One thing broken at a time: what a verification sees then, and the check that must name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kvshare.contract import Patch
from kvshare.servers.readings import (
    CacheProbe,
    ControllerProbe,
    Counters,
    Held,
    Position,
    PullSample,
    ServerProbe,
    Sources,
    Worker,
)
from kvshare.verify import checks
from kvshare.verify.evidence import (
    ADAPTERS,
    AT_ONCE,
    CONTROL,
    EDGES,
    PEER,
    PREEMPTED,
    REFERENCE,
    SALTS,
    SAME_SPLIT,
    WARM_UP,
    EngineProbe,
    Evidence,
    Leg,
    Trial,
)
from tests.unit.build import (
    REUSABLE,
    TOKENS,
    deep,
    edit,
    edit_legs,
    edit_trials,
    leg,
    output,
    proven,
    two_ranks,
)
from tests.unit.multiprocess_build import beside


@dataclass(frozen=True)
class Fault:
    """What is broken, the id that must name it, and the exit code; a warning's is 0."""

    cause: str
    evidence: Evidence
    exit_code: int = 1


def sources(found: Sources | None) -> Callable[[Leg], Leg]:
    return lambda leg: replace(leg, sources=found)


def moved(by: float) -> Callable[[Leg], Leg]:
    """Return a change that moves an answer's log-probabilities by so many nats."""
    return lambda leg: replace(leg, output=output(leg.prompt, by))


def recomputed(evidence: Evidence) -> Evidence:
    """Decode computes everything itself, and says so everywhere."""
    evidence = edit_legs(evidence, PEER, sources(Sources(local_compute=TOKENS)))
    return edit(edit(evidence, "traffic.owner_end", Counters(transfers=3)), "logs.decode_hits", ())


def without(evidence: Evidence, *kinds: str) -> Evidence:
    return edit(evidence, "traffic.legs", lambda legs: tuple(leg for leg in legs if leg.leg not in kinds))


def _engine_unreachable() -> Evidence:
    evidence = edit(
        proven(),
        "engines",
        (
            EngineProbe("default"),
            EngineProbe("gpu-b", "ssh: connect to host 192.168.110.97 port 22: timed out"),
        ),
    )
    return edit(edit(evidence, "decode.state", "missing"), "decode.fingerprint", None)


def _client_failed() -> Evidence:
    reason = "`docker compose run client` ended with code 125, see above"
    return replace(proven(), traffic=None, client_error=reason)


def _controller_down() -> Evidence:
    evidence = recomputed(proven())
    probe = ControllerProbe(
        False, "http://192.168.110.13:9000/controller/workers does not answer: connection refused"
    )
    evidence = edit(edit(evidence, "traffic.controller", probe), "traffic.admissions", ())
    return edit(edit(evidence, "controller.state", "exited"), "controller.exit_code", 137)


def _decode_down() -> Evidence:
    evidence = without(proven(), PEER, CONTROL)
    probe = ServerProbe(False, "http://192.168.110.97:8011/health does not answer: connection refused")
    evidence = edit(edit(evidence, "traffic.decode", probe), "traffic.decode_end", None)
    evidence = edit(edit(evidence, "decode.state", "exited"), "decode.fingerprint", None)
    return edit(evidence, "traffic.controller.workers", lambda workers: workers[:1])


def _prefill_down() -> Evidence:
    evidence = without(proven(), PEER, REFERENCE, SAME_SPLIT)
    probe = ServerProbe(False, "http://192.168.110.13:8010/health answers 503: nothing more")
    evidence = edit(edit(evidence, "traffic.prefill", probe), "traffic.admissions", ())
    return edit(evidence, "prefill.health", "unhealthy")


def _pull_loop_dead() -> Evidence:
    stuck = (PullSample(10, False), PullSample(10, True), PullSample(10, True))
    evidence = edit(recomputed(proven()), "traffic.controller.pull", stuck)
    return _not_admitted(evidence)


def _not_admitted(evidence: Evidence) -> Evidence:
    return edit(
        evidence,
        "traffic.admissions",
        lambda made: tuple(replace(a, how="", new_keys=0, seconds=15.0) for a in made),
    )


def _old_worker() -> Evidence:
    line = "ERROR: Error handling request message: Object missing required field `peer_init_url`"
    evidence = edit(recomputed(proven()), "logs.controller_errors", (line,))
    return edit(evidence, "traffic.controller.workers", lambda workers: workers[:1])


def _stale_address() -> Evidence:
    return edit(
        recomputed(proven()),
        "traffic.controller.workers",
        lambda workers: (replace(workers[0], peer_init_url="172.17.0.1:8200"), workers[1]),
    )


def _without_rank_1_of_decode() -> Evidence:
    return edit(two_ranks(), "traffic.controller.workers", lambda workers: workers[:3])


def _request_failed() -> Evidence:
    error = "http://192.168.110.97:8011/v1/completions answers 500: EngineCore encountered an issue"
    broken = {"ttft_ms": None, "e2e_ms": None, "sources": None, "output": (), "error": error}
    return edit_legs(proven(), PEER, lambda leg: replace(leg, **broken), range(2, 3))  # type: ignore[arg-type]


def _control_moved() -> Evidence:
    evidence = edit_legs(proven(), CONTROL, sources(Sources(TOKENS - REUSABLE, 0, REUSABLE)))
    return edit(evidence, "traffic.owner_after_control.transfers", 4)


def _corrupted_v() -> Evidence:
    """Every prompt's answer is off by what was seen on a GPU, and its first token is another."""

    def corrupt(leg: Leg) -> Leg:
        first, *rest = output(leg.prompt, 0.7)
        swapped = tuple(
            (token, logprob) for token, logprob in zip(_reordered(first), _values(first), strict=True)
        )
        return replace(leg, output=(Position(swapped[0][0], swapped), *rest))

    return edit_legs(proven(), PEER, corrupt)


def _reordered(position: Position) -> list[int]:
    ids = [token for token, _ in position.top]
    return [ids[1], ids[0], *ids[2:]]


def _values(position: Position) -> list[float]:
    return [logprob for _, logprob in position.top]


def _other_tokens() -> Evidence:
    """The distribution is right, and yet another token than the likeliest was taken."""

    def take_second(leg: Leg) -> Leg:
        first, *rest = leg.output
        return replace(leg, output=(replace(first, token=first.top[1][0]), *rest))

    return edit_legs(proven(), PEER, take_second)


def _lookup_timed_out(evidence: Evidence, kind: str, prompt: int) -> Evidence:
    request_id = f"cmpl-{leg(kind, prompt).request_id}-0-93ca6bf1"
    return edit(evidence, "logs.lookup_timeouts", (request_id,))


def _one_pull_timed_out() -> Evidence:
    """LMCache gave one pull up at its timeout, and decode computed that prompt itself."""
    computed = sources(Sources(local_compute=TOKENS))
    return _lookup_timed_out(edit_legs(proven(), PEER, computed, range(1, 2)), PEER, 1)


def _lmcache(service: str, name: str, value: Any) -> Evidence:
    return edit(proven(), f"{service}.fingerprint.lmcache.{name}", value)


def _slow_peer() -> Evidence:
    return edit_legs(proven(), PEER, lambda leg: replace(leg, ttft_ms=(leg.ttft_ms or 0) + 4000))


def all_of(evidence: Evidence) -> frozenset[str]:
    """The checks that a run of such evidence selects: those of --deep where its requests were sent."""
    return checks.select((), (), evidence.is_deep)


def _pulls(tokens: int) -> Callable[[Trial], Trial]:
    """Return a change to what a trial's requests took from the peer, all together."""

    def change(trial: Trial) -> Trial:
        assert trial.sources is not None
        return replace(trial, sources=Sources(trial.sources.total - tokens, 0, tokens))

    return change


def _foreign(kind: str) -> Evidence:
    """Who asks for what is another's gets it: where nothing was due, a chunk came."""
    return edit_trials(deep(), kind, lambda trial: trial if trial.due else _pulls(256)(trial))


def _one_answer_wrong(kind: str, number: int, by: float = 0.8) -> Evidence:
    """One of the answers of each trial of a kind is off."""

    def change(trial: Trial) -> Trial:
        wrong = replace(trial.asked[number], output=output(number, by, tokens=8))
        return replace(trial, asked=(*trial.asked[:number], wrong, *trial.asked[number + 1 :]))

    return edit_trials(deep(), kind, change)


def _left_behind() -> Evidence:
    held = {"prefill": Held(), "decode": Held(running=0, waiting=1, kv_usage=0.08, pinned=6)}
    return edit(deep(), "traffic.deep.hang_ups.after", held)


def _gateway_down() -> Evidence:
    error = "http://192.168.110.13:8000/v1/completions does not answer: connection refused"
    return edit(edit(proven(), "traffic.gateway.leg.error", error), "traffic.gateway.decode", None)


def _gateway_skips_prefill() -> Evidence:
    evidence = edit(proven(), "traffic.gateway.prefill", Sources())
    return edit(evidence, "traffic.gateway.decode", Sources(local_compute=TOKENS))


def _computed_beside(evidence: Evidence) -> Evidence:
    """Decode computes everything itself, whatever the cache servers have."""
    evidence = edit_legs(evidence, PEER, sources(Sources(local_compute=TOKENS)))
    nothing = Counters(transfers=18)
    return edit(edit(evidence, "traffic.owner_end", nothing), "traffic.pulled", {})


def _coordinator_down() -> Evidence:
    evidence = _computed_beside(beside())
    probe = "traffic.controller"
    evidence = edit(edit(evidence, f"{probe}.answers", False), f"{probe}.error", "connection refused")
    return edit(edit(evidence, f"{probe}.workers", ()), "coordinator.state", "exited")


def _cache_down() -> Evidence:
    evidence = _not_admitted(_computed_beside(beside()))
    silent = CacheProbe(False, "http://192.168.110.13:8201/status does not answer: connection refused")
    return edit(evidence, "traffic.controller.caches.prefill", silent)


def _cache_elsewhere() -> Evidence:
    other = Worker("172.17.0.1:8200", "172.17.0.1:8200", 0)
    return edit(_computed_beside(beside()), "traffic.controller.workers", lambda workers: (other, workers[1]))


FAULTS: dict[str, Fault] = {
    "gateway-down": Fault("GATE-01", _gateway_down()),
    "gateway-skips-prefill": Fault("GATE-02", _gateway_skips_prefill()),
    "gateway-wrong-answer": Fault("GATE-03", edit(proven(), "traffic.gateway.leg.output", output(99))),
    "engine-unreachable": Fault("ENG-01", _engine_unreachable(), 3),
    "container-unhealthy": Fault("ENG-02", edit(proven(), "decode.health", "unhealthy"), 0),
    "two-images": Fault("IMG-01", edit(proven(), "decode.image_id", "sha256:fedcba9876543210"), 0),
    "patch-missing": Fault(
        "IMG-02", edit(proven(), "controller.fingerprint.patches", (Patch("cpu-connector"),))
    ),
    "hash-seed": Fault("CONF-01", recomputed(edit(proven(), "decode.fingerprint.python_hash_seed", "999"))),
    "model-string": Fault("CONF-02", recomputed(edit(proven(), "decode.fingerprint.model", "/models/other"))),
    "chunk-size": Fault("CONF-03", recomputed(_lmcache("decode", "chunk_size", 128))),
    "dtype": Fault("CONF-04", edit(proven(), "decode.fingerprint.dtype", "bfloat16")),
    "kv-cache-dtype": Fault("CONF-04", edit(proven(), "decode.fingerprint.kv_cache_dtype", "fp8")),
    "async-loading-off": Fault("CONF-05", recomputed(_lmcache("decode", "enable_async_loading", False))),
    "reuse-off": Fault("CONF-06", recomputed(edit(proven(), "decode.fingerprint.kv_transfer_config", None))),
    "p2p-off": Fault("CONF-06", recomputed(_lmcache("prefill", "enable_p2p", False))),
    "failure-policy": Fault(
        "CONF-07", edit(proven(), "decode.fingerprint.kv_transfer_config", {"kv_role": "kv_both"})
    ),
    "versions": Fault("CONF-08", edit(proven(), "controller.fingerprint.versions.lmcache", "0.3.9")),
    "hash-algorithm": Fault(
        "CONF-09", recomputed(_lmcache("decode", "pre_caching_hash_algorithm", "sha256_cbor"))
    ),
    "model-revision": Fault("CONF-02", edit(proven(), "decode.fingerprint.model_revision", "v2")),
    "checksums-of-one": Fault("CONF-14", edit(proven(), "decode.fingerprint.lmcache.p2p_checksum", True)),
    "cluster-key": Fault("CONF-13", edit(proven(), "decode.fingerprint.cluster_key", "0badcafe")),
    "vllm-args": Fault("CONF-10", edit(proven(), "decode.fingerprint.vllm_args", "--quantization fp8")),
    "other-weights": Fault(
        "CONF-12", recomputed(edit(proven(), "decode.fingerprint.identity.weights", "0" * 32))
    ),
    "ranks-differ": Fault("CONF-11", edit(proven(), "decode.fingerprint.ranks", 2)),
    "rank-missing": Fault("CTRL-04", _without_rank_1_of_decode()),
    "rank-not-admitted": Fault("PRE-03", _not_admitted(two_ranks())),
    "rank-transfers-nothing": Fault(
        "KV-PEER-03", edit(two_ranks(), "traffic.owner_end", Counters(transfers=7))
    ),
    "client-failed": Fault("CLIENT-01", _client_failed(), 3),
    "controller-down": Fault("CTRL-01", _controller_down()),
    "pull-loop-dead": Fault("CTRL-02", _pull_loop_dead()),
    "old-worker": Fault("CTRL-03", _old_worker()),
    "stale-address": Fault("CTRL-04", _stale_address()),
    "prefill-down": Fault("PRE-01", _prefill_down()),
    "seed-used-before": Fault(
        "PRE-02", edit_legs(proven(), REFERENCE, sources(Sources(TOKENS - REUSABLE, REUSABLE, 0)))
    ),
    "not-admitted": Fault("PRE-03", recomputed(_not_admitted(proven()))),
    "no-prefix-cache": Fault(
        "PRE-04", edit_legs(proven(), SAME_SPLIT, sources(Sources(local_compute=TOKENS)))
    ),
    "decode-down": Fault("DEC-01", _decode_down()),
    "request-failed": Fault("DEC-02", _request_failed()),
    "recomputed": Fault("KV-PEER-01", recomputed(proven())),
    "pulled-too-little": Fault(
        "KV-PEER-01", edit_legs(proven(), PEER, sources(Sources(TOKENS - 1280, 0, 1280)), range(2, 3))
    ),
    "ledger-mismatch": Fault(
        "KV-PEER-02", edit_legs(proven(), PEER, sources(Sources(500, 0, REUSABLE)), range(1, 2))
    ),
    "transfer-uncounted": Fault("KV-PEER-03", edit(proven(), "traffic.owner_end", Counters(transfers=5))),
    "no-log-line": Fault("KV-PEER-04", edit(proven(), "logs.decode_hits", lambda hits: hits[:2])),
    "hits-uncounted": Fault("KV-PEER-05", edit(proven(), "traffic.decode_end", Counters(100, 100, 1.0))),
    "lookup-timed-out": Fault("KV-PEER-06", _lookup_timed_out(proven(), REFERENCE, 3), 0),
    "sent-too-little": Fault("KV-PEER-07", edit(proven(), "traffic.wire.bytes", lambda sent: sent - 4096)),
    "sent-too-much": Fault("KV-PEER-07", edit(proven(), "traffic.wire.bytes", lambda sent: 2 * sent)),
    "pull-timed-out": Fault("KV-PEER-01", _one_pull_timed_out()),
    "control-moved": Fault("KV-CTL-01", _control_moved()),
    "corrupted-v": Fault("KV-RIGHT-01", _corrupted_v()),
    "one-prompt-corrupted": Fault("KV-RIGHT-01", edit_legs(proven(), PEER, moved(0.03), range(2, 3))),
    "warm-up-corrupted": Fault(
        "KV-RIGHT-01", edit_legs(proven(), PEER, moved(0.03), range(WARM_UP, WARM_UP + 1))
    ),
    "other-tokens": Fault("KV-RIGHT-02", _other_tokens()),
    "noisy-server": Fault("KV-RIGHT-03", edit_legs(proven(), REFERENCE, moved(0.02)), 0),
    "slow-peer": Fault("WORTH-01", _slow_peer(), 0),
    "edge-pulled-too-little": Fault("DEEP-02", edit_trials(deep(), EDGES, _pulls(0))),
    "salt-ignored": Fault("DEEP-01", _foreign(SALTS)),
    "adapter-ignored": Fault("DEEP-03", _foreign(ADAPTERS)),
    "crowd-mixed-up": Fault("DEEP-04", _one_answer_wrong(AT_ONCE, 5)),
    "crowd-pulled-too-little": Fault("DEEP-04", edit_trials(deep(), AT_ONCE, _pulls(7 * 256))),
    "preempted-wrong": Fault("DEEP-05", _one_answer_wrong(PREEMPTED, 3)),
    "hang-up-left-behind": Fault("DEEP-06", _left_behind()),
    "mp-other-connector": Fault(
        "CONF-06",
        _computed_beside(
            edit(beside(), "decode.fingerprint.kv_transfer_config.kv_connector", "LMCacheConnectorV1")
        ),
    ),
    "mp-chunk-size": Fault(
        "CONF-03", _computed_beside(edit(beside(), "decode-cache.fingerprint.lmcache.chunk_size", 128))
    ),
    "mp-coordinator-down": Fault("COORD-01", _coordinator_down()),
    "mp-cache-elsewhere": Fault("COORD-02", _cache_elsewhere()),
    "mp-cache-down": Fault("CACHE-01", _cache_down()),
    "mp-no-peer": Fault(
        "CACHE-02", _computed_beside(edit(beside(), "traffic.controller.caches.decode.peers", ()))
    ),
    "mp-not-stored": Fault("PRE-05", _not_admitted(_computed_beside(beside()))),
    "mp-recomputed": Fault("KV-PEER-01", _computed_beside(beside())),
    "mp-served-uncounted": Fault("KV-PEER-03", edit(beside(), "traffic.owner_end.transfers", 19)),
    "mp-hits-uncounted": Fault("KV-PEER-05", edit(beside(), "traffic.decode_end", Counters(100, 100))),
    "mp-read-too-little": Fault(
        "KV-PEER-07", edit(beside(), "traffic.wire.bytes", lambda read: read - 65536)
    ),
    "mp-read-from-another": Fault(
        "KV-PEER-08",
        edit(beside(), "traffic.pulled", lambda read: {"192.168.110.98:8202": sum(read.values())}),
    ),
    "mp-control-moved": Fault("KV-CTL-01", edit(beside(), "traffic.owner_after_control.transfers", 20)),
    "mp-corrupted": Fault("KV-RIGHT-01", edit_legs(beside(), PEER, moved(0.03), range(2, 3))),
    "hang-up-restarted": Fault("DEEP-06", edit(deep(), "traffic.deep.hang_ups.restarted", ("decode",))),
}
