"""LMCache's connector and its own CUDA kernel: what leaves the paged cache comes back bit for bit, or not.

The connector is run from its source text, patched and as upstream has it, so one environment shows both.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from guard.series import find
from lmcache.v1.memory_management import MemoryFormat

from benchmarks.gpu import PACKED_KV
from tests.patches import upstream

LAYERS, HEADS, HEAD_SIZE, BLOCK_SIZE, BLOCKS, CHUNK = 32, 8, 128, 16, 256, 256  # Llama-3.1-8B's
LAYOUTS = ("NHD", "HND", "HND, seen as NHD")  # the last is how vLLM hands HND over
# vLLM keeps fp8 KV in tensors of bytes.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "fp8": torch.uint8}
# A chunk; less than one; one token; a prompt of whole chunks and a tail, as `kvshare verify` sends it.
TOKENS = (CHUNK, CHUNK - 5, 1, 6 * CHUNK + 10)
SKIPS = (0, 7)  # leading tokens that the engine already has, which must not be written


@dataclass(frozen=True)
class Case:
    """One round trip; ``buffered``: whole chunks go through the connector's GPU buffer."""

    layout: str
    dtype: str
    tokens: int
    skip: int
    buffered: bool


def run() -> dict[str, Any]:
    """Make every round trip with and without the patch; count those that were exact."""
    released = (upstream.original(PACKED_KV) or "").encode()
    patched = find(upstream.EVERY.values(), "packed-kv").applied(PACKED_KV, released) or b""
    sources = {"with": patched, "without": released}
    tried: Counter[str] = Counter()
    exact: dict[str, Counter[str]] = {arm: Counter() for arm in sources}
    wrong = []
    for case in _cases():
        tried[case.dtype] += 1
        for arm, source in sources.items():
            if _round_trip_is_exact(source, case):
                exact[arm][case.dtype] += 1
            elif arm == "with":
                wrong.append(asdict(case))
    return {
        "layers": LAYERS,
        "heads": HEADS,
        "head_size": HEAD_SIZE,
        "layouts": LAYOUTS,
        "tokens": TOKENS,
        "skips": SKIPS,
        "tried": dict(tried),
        "exact_with": dict(exact["with"]),
        "exact_without": dict(exact["without"]),
        "wrong_with": wrong,
    }


def _cases() -> Iterator[Case]:
    for case in product(LAYOUTS, DTYPES, TOKENS, SKIPS, (False, True)):
        if case[3] < case[2]:
            yield Case(*case)


def _round_trip_is_exact(source: bytes, case: Case) -> bool:
    """Whether random slots reach other slots with the same bytes, and no other byte of the cache changes."""
    generator = torch.Generator().manual_seed(0)
    slots = torch.randperm(BLOCKS * BLOCK_SIZE, generator=generator)
    leave, come_back = slots[: case.tokens], slots[case.tokens : 2 * case.tokens]
    caches = [_random_cache(case) for _ in range(LAYERS)]
    expected = [cache.clone(memory_format=torch.preserve_format) for cache in caches]
    for cache in expected:
        rows = _rows(cache, case.layout)
        rows[_at(come_back[case.skip :])] = rows[_at(leave[case.skip :])]
    connector = _connector(source, case)
    ends = [min(start + CHUNK, case.tokens) for start in range(0, case.tokens, CHUNK)]
    starts = list(range(0, case.tokens, CHUNK))
    objects = [_memory_object(end - start, case) for start, end in zip(starts, ends, strict=True)]
    connector.batched_from_gpu(objects, starts, ends, slot_mapping=leave.cuda(), kvcaches=caches)
    connector.batched_to_gpu(
        objects, starts, ends, slot_mapping=come_back.cuda(), kvcaches=caches, vllm_cached_tokens=case.skip
    )
    torch.cuda.synchronize()
    return all(torch.equal(_bytes(a), _bytes(b)) for a, b in zip(caches, expected, strict=True))


def _random_cache(case: Case) -> torch.Tensor:
    """A layer's cache of random bytes, NaN among them, as vLLM shapes it."""
    inner = (BLOCK_SIZE, HEADS) if case.layout == "NHD" else (HEADS, BLOCK_SIZE)
    dtype = DTYPES[case.dtype]
    shape = (BLOCKS, *inner, 2 * HEAD_SIZE * dtype.itemsize)
    cache = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda").view(dtype)
    return cache.transpose(1, 2) if case.layout == "HND, seen as NHD" else cache


def _rows(cache: torch.Tensor, layout: str) -> torch.Tensor:
    """The cache as [blocks, block_size, heads, 2 * head_size], shared."""
    return cache.transpose(1, 2) if layout == "HND" else cache


def _at(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    slots = slots.cuda()
    return slots // BLOCK_SIZE, slots % BLOCK_SIZE


def _bytes(cache: torch.Tensor) -> torch.Tensor:
    return cache.contiguous().view(torch.uint8)


def _memory_object(tokens: int, case: Case) -> Any:
    """A chunk in pinned memory, as LMCache allocates it; full of ones, so that what is not written shows."""
    dtype = DTYPES[case.dtype]
    shape = (2, LAYERS, tokens, HEADS * HEAD_SIZE * dtype.itemsize)
    memory = torch.full(shape, 255, dtype=torch.uint8, pin_memory=True)
    return SimpleNamespace(tensor=memory.view(dtype), metadata=SimpleNamespace(fmt=MemoryFormat.KV_2LTD))


def _connector(source: bytes, case: Case) -> Any:
    module = types.ModuleType("gpu_connectors_under_test")
    exec(compile(source, "gpu_connectors.py", "exec"), module.__dict__)
    return module.VLLMPagedMemGPUConnectorV2(
        HEADS * HEAD_SIZE,
        LAYERS,
        use_gpu=case.buffered,
        chunk_size=CHUNK,
        dtype=DTYPES[case.dtype],
        device=torch.device("cuda", 0),
        layout_hints={"kv_layout": case.layout[:3]},
    )
