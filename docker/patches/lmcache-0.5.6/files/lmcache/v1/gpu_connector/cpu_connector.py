# SPDX-License-Identifier: Apache-2.0
"""Connector between vLLM's KV cache in host memory and LMCache's memory objects (vLLM 0.32, LMCache 0.5.6).

A block of vLLM's CPU cache is not a list of tokens: its attention kernels keep the keys of a head transposed,
or in tiles where the machine has AMX. Element by element the order is a fixed permutation of the block, which
is learned once from vLLM itself. The memory objects hold plain tokens, so part of a block can move, and
machines with different instruction sets can share. Both directions are then one gather or scatter a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lmcache.lmcache_native import EngineKVFormat
from lmcache.utils import EngineType
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.gpu_connector.gpu_connectors import GPUConnectorInterface
from lmcache.v1.gpu_connector.utils import LayoutHints, normalize_kv_and_discover_format
from lmcache.v1.memory_management import MemoryFormat, MemoryObj
from lmcache.v1.metadata import LMCacheMetadata


@dataclass(frozen=True)
class _Layout:
    """Where an element of a layer's cache lies: block * block_stride + head * head_stride + inside[offset].

    ``inside`` is [block_size, 2 * head_size]: the places of a token's key, then value, in head 0 of block 0.
    """

    block_size: int
    block_stride: int
    head_stride: int
    inside: torch.Tensor


class VLLMPagedMemCPUConnector(GPUConnectorInterface):  # type: ignore[misc]  # LMCache has no types
    """Moves tokens between packed caches, one [blocks, heads, block_size, 2 * head_size] or
    [blocks, block_size, heads, 2 * head_size] tensor a layer, and KV_2LTD objects,
    [2, layers, tokens, heads * head_size] with keys in [0] and values in [1].
    """

    def __init__(
        self, num_layers: int, num_heads: int, head_size: int, layout_hints: LayoutHints | None = None
    ) -> None:
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.head_size = head_size
        self.layout_hints: LayoutHints = layout_hints or {}
        self.kvcaches: list[torch.Tensor] | None = None
        self._pointers: list[int] = []
        self._layers: list[torch.Tensor] = []
        self._layout: _Layout

    @classmethod
    def from_config(
        cls, config: LMCacheEngineConfig, metadata: LMCacheMetadata, layout_hints: LayoutHints | None = None
    ) -> VLLMPagedMemCPUConnector:
        """Build the connector for a model; raises ValueError for what only GPUs support."""
        if metadata.use_mla:
            raise ValueError(
                "LMCache on the CPU supports no MLA model: serve one without multi-head latent attention."
            )
        if config.use_layerwise:
            raise ValueError(
                "LMCache on the CPU moves whole objects, not layers: set use_layerwise to false."
            )
        num_layers, _, _, num_heads, head_size = metadata.kv_shape
        return cls(num_layers, num_heads, head_size, layout_hints)

    def to_gpu(self, memory_obj: MemoryObj, start: int, end: int, **kwargs: Any) -> None:
        """Write tokens [start, end) into the cache; the prefix vLLM cached itself is left alone."""
        skip = min(end - start, max(0, kwargs.get("vllm_cached_tokens", 0) - start))
        tokens = self._tokens_of(memory_obj, **kwargs)
        places = self._places(kwargs["slot_mapping"][start + skip : end])
        for number, layer in enumerate(self._layers):
            layer[places] = tokens[:, number, skip:]

    def from_gpu(self, memory_obj: MemoryObj, start: int, end: int, **kwargs: Any) -> None:
        """Read tokens [start, end) of the cache into the object."""
        tokens = self._tokens_of(memory_obj, **kwargs)
        places = self._places(kwargs["slot_mapping"][start:end])
        for number, layer in enumerate(self._layers):
            tokens[:, number] = layer[places]

    def batched_to_gpu(
        self, memory_objs: Sequence[MemoryObj], starts: Sequence[int], ends: Sequence[int], **kwargs: Any
    ) -> None:
        for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
            self.to_gpu(memory_obj, start, end, **kwargs)

    def batched_from_gpu(
        self, memory_objs: Sequence[MemoryObj], starts: Sequence[int], ends: Sequence[int], **kwargs: Any
    ) -> None:
        for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
            self.from_gpu(memory_obj, start, end, **kwargs)

    def get_shape(self, num_tokens: int) -> torch.Size:
        return torch.Size([2, self.num_layers, num_tokens, self.num_heads * self.head_size])

    def _tokens_of(self, memory_obj: MemoryObj, **kwargs: Any) -> torch.Tensor:
        """The object's tensor, [2, layers, tokens, heads * head_size], once it is known to fit the cache."""
        self.initialize_kvcaches_ptr(**kwargs)
        if self.kvcaches is None or "slot_mapping" not in kwargs:
            raise ValueError("The CPU connector needs 'kvcaches' and 'slot_mapping'.")
        self._discover(self.kvcaches)
        tensor = memory_obj.tensor
        if tensor is None or memory_obj.metadata.fmt != MemoryFormat.KV_2LTD:
            raise ValueError(f"The CPU connector moves KV_2LTD objects, not {memory_obj.metadata.fmt}.")
        if tensor.dtype != self._layers[0].dtype:
            raise ValueError(f"The object holds {tensor.dtype}, but vLLM's cache {self._layers[0].dtype}.")
        return tensor

    def _places(self, slots: torch.Tensor) -> torch.Tensor:
        """Places in a layer of the keys and values at ``slots`` [tokens]: [2, tokens, heads * head_size]."""
        if bool((slots < 0).any()):
            raise ValueError("A token without a slot (-1) cannot be moved.")
        layout = self._layout
        block, offset = slots // layout.block_size, slots % layout.block_size
        head = torch.arange(self.num_heads) * layout.head_stride
        places = (block * layout.block_stride)[:, None, None] + head[:, None] + layout.inside[offset][:, None]
        key, value = places.split(self.head_size, dim=-1)
        return torch.stack([key.flatten(1), value.flatten(1)])

    def _discover(self, kvcaches: list[torch.Tensor]) -> None:
        """Learn the layout when first called, and again when vLLM has other tensors."""
        pointers = [cache.data_ptr() for cache in kvcaches]
        if pointers == self._pointers:
            return
        engine_format, caches = normalize_kv_and_discover_format(
            kvcaches, EngineType.VLLM, layout_hints=self.layout_hints
        )
        self._check(engine_format, caches)
        self._layout = _layout_of(engine_format, caches[0])
        self._layers = [_flat(cache) for cache in caches]
        self._pointers = pointers

    def _check(self, engine_format: EngineKVFormat, caches: list[torch.Tensor]) -> None:
        if engine_format not in (EngineKVFormat.NL_X_NB_NH_BS_CS, EngineKVFormat.NL_X_NB_BS_NH_CS):
            raise ValueError(
                f"The CPU connector knows only packed K and V, not the cache format {engine_format}."
            )
        first = caches[0]
        heads = first.shape[1 if engine_format == EngineKVFormat.NL_X_NB_NH_BS_CS else 2]
        found = (len(caches), heads, first.shape[3])
        expected = (self.num_layers, self.num_heads, 2 * self.head_size)
        if found != expected:
            raise ValueError(
                f"Expected (layers, heads, 2 * head_size) = {expected}, but vLLM's cache has {found}."
            )
        if any((c.shape, c.stride(), c.dtype) != (first.shape, first.stride(), first.dtype) for c in caches):
            raise ValueError("The CPU connector needs the same cache shape in every layer.")


def _layout_of(engine_format: EngineKVFormat, cache: torch.Tensor) -> _Layout:
    if engine_format == EngineKVFormat.NL_X_NB_BS_NH_CS:
        _, block_size, _, width = cache.shape
        inside = torch.arange(block_size)[:, None] * cache.stride(1) + torch.arange(width)
        return _Layout(block_size, cache.stride(0), cache.stride(2), inside)
    _, _, block_size, width = cache.shape
    inside = _learn_order(block_size, width, cache.dtype)
    return _Layout(block_size, cache.stride(0), cache.stride(1), inside)


def _learn_order(block_size: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Places, [block_size, width], to which vLLM's attention moves the elements of one head's block.

    vLLM packs a block whose elements are their own plain places, one digit at a time: base 256 is exact even
    in bfloat16. Raises RuntimeError if what comes out is no permutation.
    """
    from vllm.platforms import current_platform

    size = block_size * width
    plain = torch.arange(size)
    packed = torch.zeros_like(plain)
    digit = 1
    while digit < size:
        block = (plain // digit % 256).to(dtype).view(1, 1, block_size, width)
        current_platform.pack_kv_cache(block, torch.tensor([0]))
        packed += block.flatten().long() * digit
        digit *= 256
    if not torch.equal(packed.sort().values, plain):
        raise RuntimeError(
            "vLLM's pack_kv_cache does not permute a block: this connector was made for vLLM 0.32."
        )
    return packed.argsort().view(block_size, width)


def _flat(cache: torch.Tensor) -> torch.Tensor:
    """The cache's memory as one dimension, gaps between blocks included."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(cache.shape, cache.stride(), strict=True))
    return cache.as_strided((extent,), (1,))
