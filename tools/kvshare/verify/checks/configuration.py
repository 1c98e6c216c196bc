"""Whether the engines were told the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.contract import Fingerprint
from kvshare.verify.checks.shared import ONE_IMAGE_FIX, fingerprints, listed
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("configuration")


def _equal(
    what: str, read: Callable[[Fingerprint], Any], fix: str, controller_too: bool = False
) -> Callable[[Evidence], Outcome]:
    """Return a judge that wants one value of ``read`` on both servers, or on all three engines."""

    def judge(evidence: Evidence) -> Outcome:
        prints = fingerprints(evidence, controller_too)
        if len(prints) < 2:
            return NotChecked(f"of the engines only {listed(prints)} told its configuration")
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
        prints = fingerprints(evidence)
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

CHECKS.check("CONF-01", "PYTHONHASHSEED is the same")(
    _equal(
        "PYTHONHASHSEED",
        lambda f: f.python_hash_seed,
        "set PYTHONHASHSEED in compose.yaml (shared), then make up",
        controller_too=True,
    )
)
CHECKS.check("CONF-02", "the model is named the same")(
    _equal("model string", lambda f: f.model, "set one MODEL in .env, then make up")
)
CHECKS.check("CONF-03", "the chunk size is the same")(
    _equal("chunk_size", lambda f: f.lmcache.get("chunk_size"), _SETTING_FIX)
)
CHECKS.check("CONF-04", "the dtype is the same")(
    _equal(
        "dtype",
        _dtypes,
        "set KVSHARE_DTYPE once in compose.yaml (server), one KV_CACHE_DTYPE in .env, then make up",
    )
)
CHECKS.check("CONF-05", "asynchronous loading is on (without it no peer is ever asked)")(
    _each(_setting("enable_async_loading", True), "enable_async_loading=true", _SETTING_FIX)
)
CHECKS.check("CONF-06", "reuse is on")(
    _each(
        _reuse_off,
        "--kv-transfer-config with enable_p2p, enable_controller and local_cpu",
        "set KVSHARE_KV_TRANSFER_CONFIG in compose.yaml, the rest in configs/lmcache.yaml, then make up",
    )
)
CHECKS.check("CONF-07", "KV that does not arrive is recomputed")(
    _each(
        _fails_on_lost_kv,
        "kv_load_failure_policy=recompute",
        'set "kv_load_failure_policy": "recompute" in KVSHARE_KV_TRANSFER_CONFIG, then make up',
    )
)
CHECKS.check("CONF-08", "the versions are the same")(
    _equal("set of versions", _versions, ONE_IMAGE_FIX, controller_too=True)
)
CHECKS.check("CONF-09", "the hash algorithm is the same")(
    _equal("hash algorithm", lambda f: f.lmcache.get("pre_caching_hash_algorithm"), _SETTING_FIX)
)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
