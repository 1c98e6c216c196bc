"""multi_layer_kv_transfer on the CPU: the addressing of LMCache 0.5.6's CUDA kernel, element by element.

Source: csrc/cuda/mem_kernels.cu, ``key_value_offset``, ``page_buffer_offset`` and the launch around them.
The kernel sees addresses, not shapes: tensors are flat here too, and what it reads past an object's shape
is read. It moves words of up to 8 bytes; moving elements instead changes no address while head_size is
whole words.

Compared with the kernel itself, compiled for an H100: the same bytes in 400 transfers of the formats below,
both ways, in float32 and bfloat16, on GPU and pinned memory, with and without a skipped prefix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lmcache.lmcache_native import EngineKVFormat, TransferDirection

HND_PACKED = EngineKVFormat.NL_X_NB_NH_BS_CS
NHD_PACKED = EngineKVFormat.NL_X_NB_BS_NH_CS
FLASH_ATTENTION = EngineKVFormat.NL_X_TWO_NB_BS_NH_HS
MLA = EngineKVFormat.NL_X_NB_BS_HS
SINGLE_PASS = (HND_PACKED, NHD_PACKED, MLA)


class Kernel:
    """Stands in for ``device_ops``; knows the caches it may touch by address, as a GPU would."""

    def __init__(self, caches: Sequence[torch.Tensor]) -> None:
        self._memory = {cache.data_ptr(): _flat(cache) for cache in caches}

    def multi_layer_kv_transfer(
        self,
        key_value: torch.Tensor,
        key_value_ptrs: torch.Tensor,
        slot_mapping: torch.Tensor,
        _device: torch.device,
        page_buffer_size: int,
        direction: TransferDirection,
        engine_kv_format: EngineKVFormat,
        block_size: int = 0,
        head_size: int = 0,
        skip_prefix_n_tokens: int = 0,
        block_stride_elems: int = 0,
    ) -> None:
        """Move [planes, layers, tokens, scalars] to or from the caches at ``key_value_ptrs`` [layers]."""
        _, num_layers, num_tokens, scalars = key_value.shape
        token = torch.arange(skip_prefix_n_tokens, num_tokens)[:, None]
        scalar = torch.arange(scalars)
        slot = slot_mapping[token]
        outside = _flat(key_value)
        for plane in range(1 if engine_kv_format in SINGLE_PASS else 2):
            inside_at = _page_buffer_offset(
                engine_kv_format, plane, slot, scalar, scalars,
                page_buffer_size, block_size, head_size, block_stride_elems,
            )  # fmt: skip
            for layer, pointer in enumerate(key_value_ptrs.tolist()):
                outside_at = ((plane * num_layers + layer) * num_tokens + token) * scalars + scalar
                inside = self._memory[pointer]
                if direction == TransferDirection.D2H:
                    outside[outside_at] = inside[inside_at]
                else:
                    inside[inside_at] = outside[outside_at]


def _page_buffer_offset(
    engine_kv_format: EngineKVFormat,
    plane: int,
    slot: torch.Tensor,
    scalar: torch.Tensor,
    scalars: int,
    page_buffer_size: int,
    block_size: int,
    head_size: int,
    block_stride: int,
) -> torch.Tensor:
    if engine_kv_format == MLA:
        return slot * scalars + scalar
    block, offset = slot // block_size, slot % block_size
    if engine_kv_format == FLASH_ATTENTION:
        return plane * page_buffer_size * scalars + slot * scalars + scalar
    if engine_kv_format == NHD_PACKED:
        return block * (block_stride or block_size * scalars) + offset * scalars + scalar
    if engine_kv_format == HND_PACKED:
        width = 2 * head_size
        step = block_stride or scalars // width * block_size * width
        return block * step + scalar // width * block_size * width + offset * width + scalar % width
    raise NotImplementedError(f"{engine_kv_format} is not emulated")


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All the memory from the tensor's first element on, shared."""
    elements = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    return tensor.as_strided((elements,), (1,))
