"""Probe of resumed-request: a request that goes on after a preemption keeps the tokens it had made."""

from __future__ import annotations

from types import SimpleNamespace

from probes import ProbeError
from probes.adapter import BLOCK, CHUNK

PROMPT, MADE, LOADED = 600, 200, 3 * CHUNK


def probe() -> None:
    """Raises ProbeError unless a resumed request, as the V2 runner gets it, loads all it was promised."""
    from lmcache.integration.vllm.vllm_v1_adapter import LoadSpec, ReqMeta, RequestTracker

    tokens = list(range(PROMPT + MADE))
    resumed = SimpleNamespace(
        req_id="resumed",
        prompt_token_ids=tokens[:PROMPT],
        prefill_token_ids=tokens,
        block_ids=(list(range(1, 2 + len(tokens) // BLOCK)),),
        sampling_params=SimpleNamespace(extra_args=None),
        mm_features=[],
    )
    tracker = RequestTracker.from_new_request(SimpleNamespace(), resumed, len(tokens), LOADED, False)
    meta = ReqMeta.from_request_tracker(
        tracker, BLOCK, CHUNK, LoadSpec(0, LOADED, can_load=True), discard_partial_chunks=True
    )
    found = 0 if meta is None else len(meta.token_ids)
    if meta is None or meta.token_ids[:LOADED] != tokens[:LOADED]:
        raise ProbeError(f"Of a resumed request {LOADED} tokens should be loaded, but {found} are named.")
