"""Probe of unread-lookup: what vLLM would not take is not looked up, and its request can be preempted."""

from __future__ import annotations

from types import SimpleNamespace

from probes import ProbeError
from probes.adapter import CHUNK, request, scheduler_side


def probe() -> None:
    """Raises ProbeError if a prompt's log-probabilities are looked up, or end the engine once preempted."""
    connector = scheduler_side(hits=2 * CHUNK)
    asked = request(list(range(600)), skip_reading_prefix_cache=True)
    hits = connector.get_num_new_matched_tokens(asked, 0)
    lookups = connector.lookup_client.lookup.call_count
    if hits or lookups:
        raise ProbeError(f"Nothing should be looked up, but {lookups} lookups found {hits} tokens.")
    connector._unfinished_requests["request"] = asked
    connector._request_trackers["request"] = _tracker(asked.all_token_ids)
    resumed = SimpleNamespace(
        finished_req_ids=set(),
        scheduled_new_reqs=[],
        num_scheduled_tokens={"request": 600},
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=["request"], new_block_ids=[(list(range(1, 39)),)], resumed_req_ids={"request"}
        ),
    )
    try:
        connector.build_connector_meta(resumed)
    except AssertionError as error:
        raise ProbeError(f"A preempted request that was not looked up should go on, but: {error}") from error


def _tracker(tokens: list[int]) -> object:
    from lmcache.integration.vllm.vllm_v1_adapter import RequestTracker

    return RequestTracker(
        "request", prompt_len=len(tokens), token_ids=list(tokens), allocated_block_ids=list(range(1, 39))
    )
