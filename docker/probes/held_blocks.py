"""Probe of held-blocks: what vLLM holds no more is not stored, nor looked up where it keeps nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from probes import ProbeError
from probes.adapter import BLOCK, CHUNK, request, scheduler_side

TOKENS = 2 * CHUNK
BLOCKS = list(range(1, 1 + TOKENS // BLOCK))
LET_GO = [0] * (CHUNK // BLOCK) + BLOCKS[CHUNK // BLOCK :]


def probe() -> None:
    """Raises ProbeError if a null block is stored, or KV of a model of windows alone is shared."""
    for blocks, stored, expected in ((BLOCKS, 0, True), (LET_GO, 0, False), (LET_GO, CHUNK, True)):
        if _is_stored(blocks, stored) is not expected:
            raise ProbeError(
                f"Of {TOKENS} tokens, {stored} of them stored, in blocks {blocks}, "
                f"the rest should {'' if expected else 'not '}be stored."
            )
    connector = scheduler_side(hits=CHUNK, _keeps_every_block=_keeps_every_block("SlidingWindowSpec"))
    if (
        connector.get_num_new_matched_tokens(request(list(range(TOKENS))), 0)
        or connector.lookup_client.lookup.called
    ):
        raise ProbeError("A model whose layers all have a window should look nothing up, but does.")
    if not _keeps_every_block("FullAttentionSpec") or not _keeps_every_block("MLAAttentionSpec"):
        raise ProbeError("A model of full attention should be shared, but is not.")


def _is_stored(blocks: list[int], stored: int) -> bool:
    from lmcache.integration.vllm.vllm_v1_adapter import ReqMeta, RequestTracker

    tracker = RequestTracker("request", TOKENS, list(range(TOKENS)), blocks, num_saved_tokens=stored)
    meta = ReqMeta.from_request_tracker(tracker, BLOCK, CHUNK)
    return meta is not None and meta.save_spec is not None and meta.save_spec.can_save


def _keeps_every_block(name: str) -> bool:
    from lmcache.integration.vllm import vllm_v1_adapter as adapter
    from vllm.v1 import kv_cache_interface

    spec: Any = getattr(kv_cache_interface, name)
    group = SimpleNamespace(kv_cache_spec=spec.__new__(spec))
    return bool(adapter.keeps_every_block(SimpleNamespace(kv_cache_groups=[group])))
