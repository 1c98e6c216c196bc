"""A benchmark's operator side: the client container's lines as they come, and what only Docker can tell."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from kvshare import __version__, records
from kvshare.bench.observed import Line, Observed
from kvshare.bench.results import RunFingerprint
from kvshare.bench.spec import BenchSpec
from kvshare.bench.stages import Moments, read_moments
from kvshare.config.settings import Settings
from kvshare.contract import Fingerprint, Hardware
from kvshare.cost.plan import Architecture, read_architecture, with_kv
from kvshare.errors import USAGE, CouldNotCheckError, KvshareError
from kvshare.site.base import Site, answered
from kvshare.stack.members import Member

T = TypeVar("T")
PROBE = ("python", "-m", "kvshare_engine", "probe")
# Of a fingerprint, what two fair runs have in common.
SHARED = ("versions", "patches", "model", "model_revision", "dtype", "max_model_len", "vllm_args", "ranks")
# A model's configuration: beside its weights, or where the hub's cache keeps it.
_CONFIG = (
    'cat "$1/config.json" 2>/dev/null || '
    'cat "$HF_HOME/hub/models--$(echo "$1" | sed s:/:--:g)"/snapshots/*/config.json'
)
_UNKNOWN = Fingerprint(role="")


def require_running(site: Site) -> None:
    """CouldNotCheckError names the first member that is not running."""
    found = site.look()
    for member in site.stack.engines:
        if member.context in site.silent:
            raise CouldNotCheckError(site.silent[member.context].message)
        if member.name not in found or found[member.name].status != "running":
            raise CouldNotCheckError(
                f"{member.name} does not run on context {member.context}: type make up NODE=all."
            )


def fingerprints(site: Site) -> dict[str, Fingerprint]:
    """Return by node what its engine wrote of itself at its start; nothing of one that cannot be read."""
    return {
        member.name: _asked(Fingerprint, partial(site.fingerprint, member)) or _UNKNOWN
        for member in site.stack.engines
    }


def run_fingerprint(site: Site, prints: Mapping[str, Fingerprint]) -> RunFingerprint:
    """Return what runs where; the hash leaves out what two fair runs may differ in, as addresses."""
    settings, states = site.settings, site.look()
    found: dict[str, Any] = {}
    for member in site.stack.engines:
        own, state = prints[member.name], states.get(member.name)
        probe = (*PROBE, "hardware", own.ucx.get("UCX_NET_DEVICES", ""))
        hardware = _asked(Hardware, partial(_said, site, member, *probe))
        found[member.name] = {
            **asdict(own),
            "image_id": "" if state is None else state.image_id,
            "machine": asdict(hardware.machine) if hardware else {},
            "nic": asdict(hardware.nic) if hardware and hardware.nic else {},
        }
    configuration = configuration_hash(found, settings)
    return RunFingerprint(__version__, settings.device, settings.transport, configuration, found)


def _said(site: Site, member: Member, *command: str) -> str:
    return answered(site.beside(member, *command))


def _asked(kind: type[T], ask: Callable[[], str]) -> T | None:
    """Return the record that is the answer, or None."""
    try:
        return records.loads(kind, ask(), ignore_unknown=True)
    except (CouldNotCheckError, ValueError):
        return None


def configuration_hash(found: Mapping[str, Mapping[str, Any]], settings: Settings) -> str:
    """Return the sha256 of versions, patches, model, UCX's transports and LMCache's shared settings."""
    own = ("p2p", "instance", "url", "port", "config_file")
    shared = [
        {
            "role": node.get("role"),
            **{key: node.get(key) for key in SHARED},
            "kv_cache_dtype": node.get("kv_cache_dtype"),
            "kv_transfer_config": node.get("kv_transfer_config"),
            "ucx_tls": node.get("ucx", {}).get("UCX_TLS"),
            "gpu": node.get("machine", {}).get("gpu"),
            "lmcache": {
                key: value
                for key, value in sorted(node.get("lmcache", {}).items())
                if key == "enable_p2p" or not any(word in key for word in own)
            },
        }
        for _, node in sorted(found.items())
    ]
    text = json.dumps([settings.device, settings.transport, shared], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def architecture(site: Site, decode: Fingerprint) -> Architecture | None:
    """Return the served model's architecture from its own config.json, or None if it cannot be read."""
    model = decode.model or ""
    try:
        text = _said(site, site.stack.decode, "sh", "-c", _CONFIG, "sh", model)
        found = read_architecture(text, decode.dtype or "auto", model)
        return with_kv(found, decode.kv_cache_dtype or "auto")
    except KvshareError:
        return None


def moments(site: Site) -> dict[str, Moments]:
    """Return by request id what both servers' logs say of its pull; nothing where one cannot be read."""
    try:
        return read_moments(site.log(site.stack.decode), site.log(site.stack.prefill))
    except KvshareError:
        return {}


def observe(site: Site, spec: BenchSpec, told: Callable[[Observed], None]) -> tuple[Observed, bool]:
    """Run the client container; return all it said, and whether Ctrl-C ended it.

    Args:
        told: called after each line with everything so far.
    """
    seen = Observed()
    try:
        with site.client("bench-client", spec) as process:
            assert process.stdout is not None
            for text in process.stdout:
                seen = seen.add(_line(text))
                told(seen)
            code = process.wait()
    except KeyboardInterrupt:
        return seen, True
    if code == USAGE and seen.opening is None:
        raise KvshareError("the client container refused the request, for the reason above.")
    if code != 0 and seen.closing is None and not seen.repetitions:
        raise CouldNotCheckError(f"`docker compose run client` ended with code {code}, see above.")
    return seen, False


def _line(text: str) -> Line:
    try:
        return records.loads(Line, text)
    except ValueError as error:
        raise CouldNotCheckError(
            f"the client container said what this version does not know: {error}; type make image."
        ) from None
