"""Whether the engines were told the same."""

from collections.abc import Callable
from typing import Any

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.config.settings import CONTROLLER
from kvshare.contract import Fingerprint
from kvshare.verify.checks.shared import ONE_IMAGE_FIX, fingerprints, listed
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("configuration")
_CONNECTOR = "LMCacheMPConnector"
_SETTING_FIX = (
    "correct configs/lmcache.yaml or the LMCACHE_ variable that overrides it, then make image and make up"
)


def _same(
    evidence: Evidence, what: str, read: Callable[[Fingerprint], Any], fix: str, all_engines: bool = False
) -> Outcome:
    """Compare one value of both servers, or of all engines; those that say None of it are left out."""
    prints = fingerprints(evidence, all_engines)
    if len(prints) < 2:
        return NotChecked(f"of the engines only {listed(prints)} told its configuration")
    values = {service: read(fingerprint) for service, fingerprint in prints.items()}
    if all_engines:
        values = {service: value for service, value in values.items() if value is not None}
    if len({repr(value) for value in values.values()}) == 1:
        return Passed(str(next(iter(values.values()))))
    found = ", ".join(f"{service}={value}" for service, value in values.items())
    return Failed(f"one {what}", found, tuple(values), fix)


def _each(evidence: Evidence, wrong: Callable[[Fingerprint], list[str]], expected: str, fix: str) -> Outcome:
    """Look for what is wrong with each server by itself."""
    prints = fingerprints(evidence)
    if not prints:
        return NotChecked("no server told its configuration")
    bad = {service: faults for service, one in prints.items() if (faults := wrong(one))}
    if not bad:
        return Passed(expected)
    found = "; ".join(f"{service}: {', '.join(faults)}" for service, faults in bad.items())
    return Failed(expected, found, tuple(bad), fix)


def _off(fingerprint: Fingerprint, *names: str) -> list[str]:
    """Return which of LMCache's switches are not on, and what they are."""
    found = {name: fingerprint.lmcache.get(name) for name in names}
    return [f"{name}={str(value).lower()}" for name, value in found.items() if value is not True]


@CHECKS.check("CONF-01", "PYTHONHASHSEED is the same", sharing=CONTROLLER)
def _hash_seed(evidence: Evidence) -> Outcome:
    """LMCache's keys are Python hashes: with another seed none is ever found, and nothing warns."""
    fix = "set PYTHONHASHSEED in compose.yaml (shared), then make up"
    return _same(evidence, "PYTHONHASHSEED", lambda f: f.python_hash_seed, fix, all_engines=True)


@CHECKS.check("CONF-02", "the model is named the same")
def _model(evidence: Evidence) -> Outcome:
    """Its string is part of every key: `/models/x` and `/models/x/` are two models."""

    def model(fingerprint: Fingerprint) -> str:
        at = fingerprint.model_revision
        return f"{fingerprint.model} at {at}" if at else str(fingerprint.model)

    return _same(evidence, "model string", model, "set one MODEL and MODEL_REVISION in .env, then make up")


@CHECKS.check("CONF-03", "the chunk size is the same")
def _chunk_size(evidence: Evidence) -> Outcome:
    """Prompts are hashed in chunks: another size means other keys."""
    return _same(
        evidence, "chunk_size", lambda f: f.lmcache.get("chunk_size"), _SETTING_FIX, all_engines=True
    )


@CHECKS.check("CONF-04", "the dtype is the same")
def _dtype(evidence: Evidence) -> Outcome:
    """KV is bytes of one dtype; `auto` is the model's."""

    def dtype(fingerprint: Fingerprint) -> str:
        kept = fingerprint.kv_cache_dtype or "auto"
        return str(fingerprint.dtype) if kept == "auto" else f"{fingerprint.dtype} with {kept} KV"

    fix = "set KVSHARE_DTYPE once in compose.yaml (server), one KV_CACHE_DTYPE in .env, then make up"
    return _same(evidence, "dtype", dtype, fix)


@CHECKS.check("CONF-05", "asynchronous loading is on (without it no peer is ever asked)", sharing=CONTROLLER)
def _asynchronous(evidence: Evidence) -> Outcome:
    """Without it LMCache answers every lookup at a peer with no, and nothing warns."""
    name = "enable_async_loading"
    return _each(evidence, lambda f: _off(f, name), f"{name}=true", _SETTING_FIX)


@CHECKS.check("CONF-06", "reuse is on")
def _reuse_on(evidence: Evidence) -> Outcome:
    """Both servers have a KV connector, and LMCache's peers, controller and CPU cache.

    With SHARING=multiprocess the connector is the one to a cache server; CACHE-02 says whom that has as peer.
    """
    if evidence.stack.controller.is_coordinator:
        return _connected(evidence)

    def off(fingerprint: Fingerprint) -> list[str]:
        if fingerprint.kv_transfer_config is None:
            return ["no --kv-transfer-config"]
        return _off(fingerprint, "enable_p2p", "enable_controller", "local_cpu")

    expected = "--kv-transfer-config with enable_p2p, enable_controller and local_cpu"
    fix = "set KVSHARE_KV_TRANSFER_CONFIG in compose.yaml, the rest in configs/lmcache.yaml, then make up"
    return _each(evidence, off, expected, fix)


def _connected(evidence: Evidence) -> Outcome:
    """Judge whether both servers have the connector to a cache server."""

    def off(fingerprint: Fingerprint) -> list[str]:
        chosen = fingerprint.kv_transfer_config
        connector = chosen.get("kv_connector") if chosen else "no --kv-transfer-config"
        return [] if connector == _CONNECTOR else [str(connector)]

    fix = "correct KVSHARE_KV_TRANSFER_CONFIG in compose.mp.yaml, then make up"
    return _each(evidence, off, f"--kv-transfer-config with {_CONNECTOR}", fix)


@CHECKS.check("CONF-07", "KV that does not arrive is recomputed")
def _lost_kv(evidence: Evidence) -> Outcome:
    """Then a lost peer costs time; by vLLM's default it costs the answer."""

    def fails(fingerprint: Fingerprint) -> list[str]:
        if fingerprint.kv_transfer_config is None:  # CONF-06 says so
            return []
        policy = fingerprint.kv_transfer_config.get("kv_load_failure_policy", "fail, vLLM's default")
        return [] if policy == "recompute" else [f"kv_load_failure_policy={policy}"]

    fix = 'set "kv_load_failure_policy": "recompute" in KVSHARE_KV_TRANSFER_CONFIG, then make up'
    return _each(evidence, fails, "kv_load_failure_policy=recompute", fix)


@CHECKS.check("CONF-08", "the versions are the same")
def _versions(evidence: Evidence) -> Outcome:
    """Messages and memory layouts carry none: skew shows as lost registrations or wrong KV."""

    def versions(fingerprint: Fingerprint) -> str:
        return ", ".join(f"{name} {version}" for name, version in sorted(fingerprint.versions.items()))

    return _same(evidence, "set of versions", versions, ONE_IMAGE_FIX, all_engines=True)


@CHECKS.check("CONF-09", "the hash algorithm is the same", sharing=CONTROLLER)
def _hash_algorithm(evidence: Evidence) -> Outcome:
    """Another one means other keys."""
    name = "pre_caching_hash_algorithm"
    return _same(evidence, "hash algorithm", lambda f: f.lmcache.get(name), _SETTING_FIX)


@CHECKS.check("CONF-10", "VLLM_ARGS is the same")
def _vllm_args(evidence: Evidence) -> Outcome:
    """What vLLM was told beside kvshare's own options; many of them change what KV is.

    A difference is a server that was not started anew after `.env` was edited, or another machine's `.env`.
    """
    fix = "set one VLLM_ARGS in .env, then make up"
    outcome = _same(evidence, "VLLM_ARGS", lambda f: f.vllm_args, fix)
    return Passed(outcome.detail or "none") if isinstance(outcome, Passed) else outcome


@CHECKS.check("CONF-11", "the servers compute on as many GPUs")
def _ranks(evidence: Evidence) -> Outcome:
    """Each rank keeps the KV of its own heads: servers of other numbers of ranks share nothing.

    Without a GPU the ranks are those of CPU_RANKS.
    """
    fix = "list as many GPUs in PREFILL_GPU as in DECODE_GPU of .env, then make up"
    return _same(evidence, "number of GPUs", lambda f: f.ranks, fix)


@CHECKS.check("CONF-12", "the model is served the same")
def _identity(evidence: Evidence) -> Outcome:
    """What decides a token's KV is part of every key: weights, configuration, quantisation and dtypes.

    Weights are compared by samples of each tensor, the configuration as vLLM has it after every override.
    Servers that differ in any of it share nothing, rather than KV that is not their own.
    """
    told = {service: f.identity for service, f in fingerprints(evidence).items() if f.identity}
    if len(told) < 2:
        return NotChecked(f"what is served was told by {listed(told) or 'no server'} only")
    names = dict.fromkeys(name for identity in told.values() for name in identity if name != "identity")
    unlike = [name for name in names if len({identity.get(name) for identity in told.values()}) > 1]
    if not unlike:
        return Passed(next(iter(told.values())).get("identity", "")[:12])
    found = [
        f"{name} ({', '.join(f'{service}={told[service].get(name)}' for service in told)})" for name in unlike
    ]
    fix = "put the same files of the model on every machine, start with one .env, then make up"
    return Failed("one model", f"unlike {', '.join(found)}", tuple(told), fix)


@CHECKS.check("CONF-13", "the nodes have one cluster key")
def _cluster_key(evidence: Evidence) -> Outcome:
    """LMCache's ports turn away who has another: nodes of two keys share nothing.

    `make up` makes one for all nodes of a checkout; what is started from another, or by plain
    `docker compose`, has to be given the same. Keys are told apart by a name that tells nothing of them.
    """
    fix = "start every node from one checkout, or with one CLUSTER_KEY_FILE in .env: make down, then make up"
    return _same(evidence, "cluster key", lambda f: f.cluster_key or "none", fix, all_engines=True)


@CHECKS.check("CONF-14", "KV is compared by checksum on all servers or on none", sharing=CONTROLLER)
def _checksum(evidence: Evidence) -> Outcome:
    """A server with KV_CHECKSUM=on uses nothing of one without, and computes all that is held there."""
    fix = "set one KV_CHECKSUM in .env, then make up"
    return _same(evidence, "KV_CHECKSUM", lambda f: _switch(f.lmcache.get("p2p_checksum")), fix)


def _switch(value: object) -> str:
    return "on" if value in (True, "on", "true") else "off"
