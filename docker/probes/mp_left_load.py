"""Probe of mp-left-load: of a request that ends in its load vLLM hears once, when it is over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from probes import ProbeError

LEFT, STAYED = "left", "stayed"


def probe() -> None:
    """Raises ProbeError unless each request is told of as vLLM's scheduler has it."""
    for order in (("loaded", "saved"), ("saved", "loaded")):
        connector = _connector()
        for request in (LEFT, STAYED):
            _load(connector, request)
        connector.request_finished(SimpleNamespace(request_id=LEFT, kv_transfer_params=None), [])
        first, second = (_heard(connector, word, LEFT) for word in order)
        if first or second != ["saved"]:
            raise ProbeError(
                f"A request that ends in its load should be saved at the end, and is {first}, then {second}."
            )
        if (found := _heard(connector, "loaded", STAYED)) != ["loaded"]:
            raise ProbeError(f"A request that stays should be loaded, and is {found}.")


def _connector() -> Any:
    from lmcache.integration.vllm.lmcache_mp_connector import LMCacheMPConnector

    connector = LMCacheMPConnector.__new__(LMCacheMPConnector)
    connector.request_trackers, connector.lazy_offload, connector._can_store = {}, False, True
    connector._kv_cache_events, connector._group_tokens_per_block = [], [16]
    connector.scheduler_adapter = SimpleNamespace(
        lmcache_tokens_per_chunk=256, end_session=lambda _: None, cleanup_lookup_result=lambda _: None
    )
    try:
        from lmcache.integration.vllm.mp_loads import LoadsLeft
    except ImportError:  # without the patch nobody keeps them
        return connector
    connector._loads = LoadsLeft()
    return connector


def _load(connector: Any, request: str) -> None:
    """Have a load of a request of one chunk begin."""
    from lmcache.integration.vllm.lmcache_mp_metadata import (
        LMCacheMPConnectorMetadata,
        LMCacheMPRequestState,
        LMCacheMPRequestTracker,
    )

    tracker = LMCacheMPRequestTracker.__new__(LMCacheMPRequestTracker)
    tracker.request_id, tracker.all_token_ids, tracker.num_prompt_tokens = request, [1] * 256, 256
    tracker.mm_adjusted_prompt_ids, tracker.cache_salt, tracker.request_configs = [], "", None
    tracker.allocated_block_ids, tracker.num_scheduled_tokens, tracker.num_stored_tokens = {}, 0, 256
    tracker.num_vllm_hit_tokens, tracker.num_lmcache_hit_tokens = 0, 256
    tracker.max_offload_tokens = None
    tracker.append_block_ids((list(range(1, 17)),))
    tracker.state = LMCacheMPRequestState.WAITING_FOR_LOAD
    connector.request_trackers[request] = tracker
    connector._process_retrieve_requests(LMCacheMPConnectorMetadata())


def _heard(connector: Any, word: str, request: str) -> list[str]:
    """What vLLM hears in a step in which the worker says one word of a request."""
    from vllm.v1.outputs import KVConnectorOutput

    output = KVConnectorOutput()
    output.finished_recving = {request} if word == "loaded" else None
    output.finished_sending = {request} if word == "saved" else None
    connector.update_connector_output(output)
    heard = {"loaded": output.finished_recving, "saved": output.finished_sending}
    return [name for name, requests in heard.items() if request in (requests or ())]
