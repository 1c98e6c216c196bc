"""What this container really runs with, written where `kvshare verify` reads it from outside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from kvshare.contract import Fingerprint, Patch
from kvshare_engine import cluster_key
from kvshare_engine.environment import FINGERPRINT, LMCACHE_CONFIG, Cache, Server

DISTRIBUTIONS = ("vllm", "lmcache", "nixl", "torch")
PATCHES = Path("/opt/kvshare/patches.json")


def write(fingerprint: Fingerprint) -> None:
    FINGERPRINT.write_text(json.dumps(asdict(fingerprint), indent=2))


def of_cache(role: str, cache: Cache) -> Fingerprint:
    return replace(
        of(role), ranks=cache.ranks, lmcache=lmcache_settings(LMCACHE_CONFIG, os.environ), ucx=_ucx()
    )


def of(role: str) -> Fingerprint:
    """What every container says of itself."""
    return Fingerprint(
        role=role,
        versions={name: metadata.version(name) for name in DISTRIBUTIONS},
        python_hash_seed=os.environ.get("PYTHONHASHSEED"),
        cluster_key=cluster_key.name(os.environ),
        patches=tuple(Patch(**patch) for patch in json.loads(PATCHES.read_text()))
        if PATCHES.exists()
        else (),
    )


def of_server(server: Server, model: str) -> Fingerprint:
    return replace(
        of(server.role),
        instance=server.instance,
        model=model,
        model_revision=server.model_revision or None,
        vllm_args=server.user_args,
        vocab_size=vocab_size(Path(model)),
        dtype=server.dtype,
        kv_cache_dtype=server.kv_cache_dtype,
        max_model_len=server.max_model_len,
        kv_transfer_config=json.loads(server.kv_transfer_config) if server.kv_transfer_config else None,
        ranks=server.ranks,
        lmcache=lmcache_settings(LMCACHE_CONFIG, os.environ),
        ucx=_ucx(),
    )


def _ucx() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("UCX_")}


def lmcache_settings(config: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """LMCache's settings as it reads them: the YAML file, then every LMCACHE_<KEY> of the environment.

    Source: ``lmcache/v1/config_base.py`` of LMCache 0.5.6 (``load_config_with_overrides``).
    """
    settings: dict[str, Any] = yaml.safe_load(config.read_text())
    for name, value in environment.items():
        if name.startswith("LMCACHE_") and name != "LMCACHE_CONFIG_FILE":
            settings[name.removeprefix("LMCACHE_").lower()] = yaml.safe_load(value)
    return settings


def vocab_size(model: Path) -> int | None:
    """Vocabulary of a model on disk, in tokens; None for a model known only by its hub name."""
    try:
        return int(json.loads((model / "config.json").read_text())["vocab_size"])
    except (OSError, ValueError, KeyError):
        return None
