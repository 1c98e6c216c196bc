"""Probe of packed-kv: the connector and the emulated kernel together move K and V unharmed."""

from __future__ import annotations

import contextlib
import types
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lmcache.v1.memory_management import MemoryFormat

from probes import ProbeError
from probes.kernel import Kernel

LAYERS, BLOCKS, BLOCK_SIZE, HEADS, HEAD_SIZE, CHUNK = 3, 12, 16, 4, 8, 64
LAYOUTS = {
    "HND": (BLOCKS, HEADS, BLOCK_SIZE, 2 * HEAD_SIZE),
    "NHD": (BLOCKS, BLOCK_SIZE, HEADS, 2 * HEAD_SIZE),
}


def probe() -> None:
    """Probe the installed package; raises ProbeError."""
    module = import_module("lmcache.v1.gpu_connector.gpu_connectors")
    check(Path(str(module.__file__)).read_bytes())


def check(source: bytes) -> None:
    """Probe this text of gpu_connectors.py, whole and partial chunks, in both layouts; raises ProbeError."""
    for layout in LAYOUTS:
        for tokens in (CHUNK, CHUNK - 5, 1):
            if not round_trip_is_exact(source, layout, tokens):
                raise ProbeError(
                    f"{tokens} tokens of packed {layout} KV should come back as they left, but do not."
                )


def round_trip_is_exact(source: bytes, layout: str, tokens: int, skip: int = 0, seed: int = 0) -> bool:
    """Whether ``tokens`` random slots leave the cache and come back at other slots with the same K and V.

    The first ``skip`` tokens are the engine's own on return: their slots, like all others, must not change.
    """
    torch.manual_seed(seed)
    slots = torch.randperm(BLOCKS * BLOCK_SIZE)
    leave, come_back = slots[:tokens], slots[tokens : 2 * tokens]
    caches = [torch.randn(LAYOUTS[layout]) for _ in range(LAYERS)]
    expected = [cache.clone() for cache in caches]
    for cache in expected:
        rows = _rows(cache, layout)
        rows[_at(come_back[skip:])] = rows[_at(leave[skip:])]
    memory_object = SimpleNamespace(
        tensor=torch.zeros(2, LAYERS, tokens, HEADS * HEAD_SIZE),
        metadata=SimpleNamespace(fmt=MemoryFormat.KV_2LTD),
    )
    connector = connector_on_cpu(source, layout, caches)
    connector.batched_from_gpu([memory_object], [0], [tokens], slot_mapping=leave, kvcaches=on_gpu(caches))
    connector.batched_to_gpu(
        [memory_object],
        [0],
        [tokens],
        slot_mapping=come_back,
        kvcaches=on_gpu(caches),
        vllm_cached_tokens=skip,
    )
    return all(torch.equal(cache, wanted) for cache, wanted in zip(caches, expected, strict=True))


def _rows(cache: torch.Tensor, layout: str) -> torch.Tensor:
    """The cache as [blocks, block_size, heads, 2 * head_size], shared."""
    return cache.transpose(1, 2) if layout == "HND" else cache


def _at(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return slots // BLOCK_SIZE, slots % BLOCK_SIZE


def connector_on_cpu(
    source: bytes,
    layout: str,
    caches: list[torch.Tensor],
    width: int = HEADS * HEAD_SIZE,
    use_mla: bool = False,
) -> Any:
    """VLLMPagedMemGPUConnectorV2 of this source text, with a chunk buffer, on a stand-in for the GPU.

    ``width`` is that of a token in one plane of the object: heads * head_size.
    """
    module = types.ModuleType("gpu_connectors_under_probe")
    exec(compile(source, "gpu_connectors.py", "exec"), module.__dict__)
    module.__dict__.update(torch=TorchOnCpu(), device_ops=Kernel(caches))
    return module.VLLMPagedMemGPUConnectorV2(
        width,
        LAYERS,
        use_gpu=True,
        use_mla=use_mla,
        chunk_size=CHUNK,
        dtype=torch.float32,
        device=GPU,
        layout_hints={"kv_layout": layout},
    )


GPU = torch.device("cuda", 0)


# A tensor in host memory that says it is on the GPU.
OnGpu = type("OnGpu", (torch.Tensor,), {"device": GPU})


def on_gpu(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.as_subclass(OnGpu) for tensor in tensors]


class TorchOnCpu:
    """``torch`` as the connector's module uses it, with CUDA's streams and memory stood in for."""

    cuda = SimpleNamespace(
        Stream=lambda: SimpleNamespace(synchronize=lambda: None),
        stream=lambda _stream: contextlib.nullcontext(),
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *size: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
        tensor = torch.zeros(*size, dtype=dtype)
        return tensor.as_subclass(OnGpu) if torch.device(device) == GPU else tensor
