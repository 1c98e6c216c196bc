"""Where the model is, what its config.json says of it, and whether KV of it can be shared at all."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from kvshare.contract import DEMO_MODEL, Hub, Model, folder_of
from kvshare.refusals import INSTEAD, may_write, text_config, unshareable
from kvshare_engine import demo_model, hub
from kvshare_engine.environment import is_multiprocess, refuse

VOLUME = Path("/models")
CONFIG = "config.json"


def find(
    name: str, revision: str = "", device: str = "", vllm_args: str = "", volume: Path = VOLUME
) -> Model:
    """The model on this machine, by path, as the demo's, or in the hub's cache."""
    config = _config(_folder(name, revision, volume))
    found = config is not None
    if config is None and name == DEMO_MODEL:  # made at the first start
        config = demo_model.ARCHITECTURE
    writable = found or name.startswith("/") or _may_write(volume)
    return described(Model(name, found, writable=writable), config or {}, device, vllm_args)


def require(name: str, revision: str, device: str, vllm_args: str = "") -> str:
    """The model as vLLM is given it: made here if it is the demo's, looked up if it is a path.

    Ends the container if it is not there and cannot be put there, or if its KV cannot be shared.
    """
    model = find(name, revision, device, vllm_args, VOLUME)
    if name.startswith("/") and not model.found:
        refuse(
            f"expected a model at {name} and found no config.json there; "
            "set MODEL in .env to a hub name or to a path under the models volume"
        )
    if not model.writable:
        refuse(
            f"expected to put {name} into the models volume, which user {os.geteuid()} may not write; "
            f"chown {os.geteuid()} the folder that MODELS in .env names, on this machine"
        )
    if hub.has(name):
        answer, config = hub.ask(name, os.environ.get("HF_TOKEN", ""), revision)
        if answer.error:
            _do_without(answer, model)
        elif not model.found:
            model = described(model, config, device, vllm_args)
    if model.unshareable:
        refuse(f"expected a model whose KV can be shared and found {name}: {model.unshareable}; {INSTEAD}")
    return str(demo_model.ensure(VOLUME / folder_of(name))) if name == DEMO_MODEL else name


def _do_without(unreached: Hub, model: Model) -> None:
    """Let vLLM take what was fetched before; it would ask again and again, for minutes, and then end."""
    if not model.found:
        refuse(
            f"expected {model.name} in the models volume or from the hub, and {unreached.address} cannot be "
            f"reached ({unreached.error}); put the model there, and its path into MODEL in .env"
        )
    print(f"kvshare: {unreached.address} cannot be reached, {model.name} is taken as it was fetched before")
    os.environ["HF_HUB_OFFLINE"] = "1"


def digests(name: str, revision: str = "", volume: Path = VOLUME) -> dict[str, str]:
    """What tells a model's files from others of that name: its config.json, and samples of its weights.

    Nothing of what is not there.
    """
    folder = _folder(name, revision, volume)
    config = _config(folder)
    if folder is None or config is None:
        return {}
    lmcache = _lmcache_weights()
    found = {"config": lmcache.digest(config)}
    try:
        return {**found, "weights": lmcache.weights_digest(folder)}
    except lmcache.UnknownError:
        return found


def _lmcache_weights() -> ModuleType:
    """The module that LMCache takes weights' digests with; without LMCache, which takes seconds to import."""
    path = _lmcache() / "integration/vllm/weights.py"
    spec = importlib.util.spec_from_file_location("lmcache_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _lmcache() -> Path:
    package = importlib.util.find_spec("lmcache")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent


def _config(folder: Path | None) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / CONFIG).read_text())) if folder else None
    except (OSError, ValueError):
        return None


def _may_write(volume: Path) -> bool:
    return may_write(volume, os.geteuid(), (os.getegid(), *os.getgroups()))


def _folder(name: str, revision: str, volume: Path) -> Path | None:
    if name.startswith("/"):
        return Path(name)
    folder = volume / folder_of(name)
    if name == DEMO_MODEL:
        return folder
    if not revision:
        return max((folder / "snapshots").glob("*"), default=None)
    branch = folder / "refs" / revision  # holds its commit
    return folder / "snapshots" / (branch.read_text().strip() if branch.is_file() else revision)


def described(model: Model, whole: Mapping[str, Any], device: str, vllm_args: str = "") -> Model:
    """The model with what its config.json says of it."""
    config = text_config(whole)
    heads = config.get("num_attention_heads")
    width = config.get("hidden_size")
    return replace(
        model,
        layers=config.get("num_hidden_layers"),
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or (width // heads if width and heads else None),
        dtype=config.get("dtype") or config.get("torch_dtype"),
        longest=config.get("max_position_embeddings"),
        unshareable=unshareable(whole, device, vllm_args, is_multiprocess()),
    )
