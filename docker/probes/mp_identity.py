"""Probe of mp-identity: no cache server is asked for a token's KV by the key of another's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

from probes import ProbeError
from probes.adapter import CHUNK, request
from probes.identity import adapter

BLOCK = 16
TOKENS = list(range(2 * CHUNK))


def probe() -> None:
    """Raises ProbeError unless unlike requests and models have unlike keys, and like ones the same."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _require_requests_apart(place)
        _require_models_apart(place)


def _require_requests_apart(folder: Path) -> None:
    connector = _connector(_model(folder, "served", 0))
    adapters = [adapter(folder, name, number) for number, name in enumerate("ab", start=11)]
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "salt a": {"cache_salt": "a"},
        "salt b": {"cache_salt": "b@/"},
        "adapter a": {"lora_request": adapters[0]},
        "adapter b": {"lora_request": adapters[1]},
        "both": {"lora_request": adapters[0], "cache_salt": "a"},
    }
    salts = {name: _salts(connector, **kind) for name, kind in kinds.items()}
    if len(set(salts.values())) < len(salts):
        raise ProbeError(f"Each of {', '.join(salts)} should have a salt of its own, but they are {salts}.")
    if any(looked_up != stored for looked_up, stored in salts.values()):
        raise ProbeError(f"A request should be stored under what it is looked up by: {salts}.")
    if _salts(connector, cache_salt="vllm-only:x") != salts["plain"]:
        raise ProbeError("A salt for vLLM alone should set nothing apart, but does.")
    if (found := _salts(connector, prompt_embeds=object())) != (None, None):
        raise ProbeError(f"A prompt of embeddings should not be shared, but is: {found}.")
    if (found := _salts(connector, skip_reading_prefix_cache=True)) != (None, ""):
        raise ProbeError(f"A prompt whose tokens are all computed should be stored only, but is: {found}.")


def _salts(connector: Any, **differs: Any) -> tuple[str | None, str | None]:
    """What a request is looked up by and stored under, None where it is not."""
    from lmcache.integration.vllm.lmcache_mp_metadata import LMCacheMPRequestMetadata

    asked = request(TOKENS, num_prompt_tokens=len(TOKENS), status=None, resumable=False, **differs)
    lookup = connector.scheduler_adapter.maybe_submit_lookup_request
    lookup.reset_mock()
    connector.on_new_request(asked)
    connector.get_num_new_matched_tokens(asked, 0)
    tracker = connector.request_trackers.pop(asked.request_id)
    tracker.append_block_ids((list(range(1, 1 + len(TOKENS) // BLOCK)),))
    tracker.increase_num_scheduled_tokens(len(TOKENS))
    stored = LMCacheMPRequestMetadata.GetStoreMetadata(tracker, CHUNK, [BLOCK])
    looked_up = {call.kwargs["cache_salt"] for call in lookup.call_args_list} or {None}
    return looked_up.pop(), stored and stored.cache_salt


def _require_models_apart(folder: Path) -> None:
    """Other weights under a name are another model; how a kernel lays KV out counts too."""
    first = _model(folder, "first", 0)
    names = [_connector(first).model_name, _connector(_model(folder, "first", 1)).model_name]
    if len(set(names)) < len(names):
        raise ProbeError(f"Weights that differ should have two names, but have {names[0]}.")
    again = _model(folder, "first", 0)
    if _connector(again).model_name != names[0]:
        raise ProbeError("The name of the same weights should be the same every time.")
    if _connector(again, block=2 * BLOCK).model_name == names[0]:
        raise ProbeError("Blocks of another size should have another name.")


def _connector(model: Path, block: int = BLOCK) -> Any:
    """A connector of the scheduler, without an engine behind it, and what it calls the model."""
    from lmcache.integration.vllm import lmcache_mp_connector as module
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    scheduler = Mock(lmcache_tokens_per_chunk=CHUNK)
    scheduler.return_value = scheduler
    scheduler.check_lookup_result.return_value = 0
    stand_ins = {
        "validate_mamba_step_alignment": Mock(),
        "validate_kv_cache_groups": Mock(),
        "validate_dcp_support": Mock(),
        "get_group_tokens_per_block": Mock(return_value=[block]),
        "get_vllm_scheduler_block_size": Mock(return_value=block),
        "build_parallel_strategy_from_vllm_config": Mock(),
        "LMCacheMPSchedulerAdapter": scheduler,
    }
    with patch.multiple(module, **stand_ins):
        connector = module.LMCacheMPConnector(_config(model), KVConnectorRole.SCHEDULER)
    connector._eager_prefetch = True
    connector.model_name = scheduler.call_args.kwargs["model_name"]
    return connector


def _config(model: Path) -> Any:
    """vLLM's configuration, as far as the connector reads it."""
    import torch

    transfer = SimpleNamespace(
        engine_id="engine",
        is_kv_producer=True,
        kv_connector_extra_config={},
        get_from_extra_config=lambda _, default: default,
    )
    return SimpleNamespace(
        kv_transfer_config=transfer,
        kv_events_config=None,
        load_config=SimpleNamespace(load_format="auto"),
        parallel_config=SimpleNamespace(world_size=1),
        cache_config=SimpleNamespace(cache_dtype="auto", enable_prefix_caching=True),
        model_config=SimpleNamespace(
            model=str(model),
            revision=None,
            seed=0,
            dtype=torch.float32,
            quantization=None,
            hf_config=SimpleNamespace(to_dict=dict),
            get_head_size=lambda: 64,
        ),
    )


def _model(folder: Path, name: str, number: int) -> Path:
    """A model of that name, whose weights are of that number."""
    import torch
    from safetensors.torch import save_file

    place = folder / name
    place.mkdir(exist_ok=True)
    save_file({"k_proj": torch.full((4, 4), float(number))}, place / "model.safetensors")
    return place
