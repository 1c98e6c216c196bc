"""Probe of cpu-connector: what CreateGPUConnector returns moves the K and V that vLLM's own kernel wrote."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from lmcache.utils import EngineType
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.gpu_connector import CreateGPUConnector
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from probes import ProbeError

UNTOUCHED = 7.0


@dataclass(frozen=True)
class Model:
    layers: int = 2
    heads: int = 3
    head_size: int = 32
    blocks: int = 6
    block_size: int = 32
    dtype: torch.dtype = torch.float32


def probe() -> None:
    """Move whole blocks and parts of blocks out and back; raises ProbeError."""
    for tokens, skip in ((128, 0), (64, 32), (37, 0), (37, 5), (1, 0)):
        slots = torch.randperm(
            Model.blocks * Model.block_size, generator=torch.Generator().manual_seed(tokens)
        )
        check(Model(), slots[:tokens], skip)


def check(model: Model, slots: torch.Tensor, skip: int = 0) -> None:
    """K and V written by vLLM at ``slots`` reach the object as they are, and come back to the same places.

    On the way back the first ``skip`` tokens are the engine's own. Raises ProbeError.
    """
    key, value = _random_tokens(model, len(slots)), _random_tokens(model, len(slots))
    connector = connector_for(model)
    memory_object = object_for(model, len(slots))
    move = {"slot_mapping": slots, "kvcaches": cache_with(model, key, value, slots)}
    connector.batched_from_gpu([memory_object], [0], [len(slots)], **move)
    for name, plane, tokens in (("K", 0, key), ("V", 1, value)):
        if not torch.equal(memory_object.tensor[plane], tokens.flatten(2)):
            raise ProbeError(
                f"The object should hold the {name} that vLLM wrote at {len(slots)} slots, but does not."
            )

    received = cache_with(model, key[:, :0], value[:, :0], slots[:0])
    move = {"slot_mapping": slots, "kvcaches": received, "vllm_cached_tokens": skip}
    connector.batched_to_gpu([memory_object], [0], [len(slots)], **move)
    wanted = cache_with(model, key[:, skip:], value[:, skip:], slots[skip:])
    if not all(torch.equal(cache, other) for cache, other in zip(received, wanted, strict=True)):
        raise ProbeError(f"{len(slots)} tokens should reach the places where vLLM writes them, but do not.")


def connector_for(model: Model, layout: str = "HND", **config: Any) -> Any:
    """What CreateGPUConnector returns for the model on this machine."""
    settings = LMCacheEngineConfig.from_defaults(**config)
    return CreateGPUConnector(
        settings, metadata_for(model), EngineType.VLLM, layout_hints={"kv_layout": layout}
    )


def metadata_for(model: Model, use_mla: bool = False) -> LMCacheMetadata:
    return LMCacheMetadata(
        model_name="probe",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=model.dtype,
        kv_shape=(model.layers, 2, 256, model.heads, model.head_size),
        use_mla=use_mla,
    )


def object_for(model: Model, tokens: int) -> Any:
    """A KV_2LTD memory object whose memory holds rubbish, as a fresh one does."""
    tensor = torch.full(
        (2, model.layers, tokens, model.heads * model.head_size), torch.nan, dtype=model.dtype
    )
    return SimpleNamespace(tensor=tensor, metadata=SimpleNamespace(fmt=MemoryFormat.KV_2LTD))


def cache_with(
    model: Model, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor
) -> list[torch.Tensor]:
    """Caches of all layers, into which vLLM has written [layers, tokens, heads, head_size] at ``slots``."""
    shape = (model.blocks, model.heads, model.block_size, 2 * model.head_size)
    caches = [torch.full(shape, UNTOUCHED, dtype=model.dtype) for _ in range(model.layers)]
    isa = _get_attn_isa(model.dtype, model.block_size, model.head_size)
    for layer, cache in enumerate(caches):
        halves = cache.view(model.blocks, model.heads, 2 * model.block_size, model.head_size).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(key[layer], value[layer], *halves, slots, isa)
    return caches


def _random_tokens(model: Model, tokens: int) -> torch.Tensor:
    return torch.randn(model.layers, tokens, model.heads, model.head_size).to(model.dtype)
