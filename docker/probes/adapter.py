"""LMCache's connector to vLLM for probes, without an engine behind it: only what a probe sets is there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

CHUNK = 256
BLOCK = 16


def scheduler_side(**attributes: Any) -> Any:
    """A connector of the scheduler whose lookups end at once with ``hits`` (0 unless given)."""
    client = Mock(spec=["lookup", "lookup_cache", "clear_lookup_status", "cancel_lookup"])
    client.lookup_cache.return_value = -1
    client.lookup.return_value = attributes.pop("hits", 0)
    known = {
        "_manager": SimpleNamespace(lookup_client=client, lmcache_engine=None),
        "_unfinished_requests": {},
        "_configs": {},
        "_keeps_every_block": True,
    }
    return _connector(**known | attributes)


def worker_side(engine: Any, **attributes: Any) -> Any:
    """A connector of a worker over a stand-in for LMCache's engine."""
    return _connector(_manager=SimpleNamespace(lmcache_engine=engine), **attributes)


def request(tokens: list[int], **attributes: Any) -> Any:
    """A request as vLLM's scheduler has it."""
    known = {
        "request_id": "request",
        "all_token_ids": tokens,
        "prompt_token_ids": tokens,
        "num_tokens": len(tokens),
        "num_computed_tokens": 0,
        "sampling_params": SimpleNamespace(extra_args=None),
        "kv_transfer_params": None,
        "mm_features": [],
        "prompt_embeds": None,
        "lora_request": None,
        "cache_salt": None,
        "skip_reading_prefix_cache": False,
        "priority": 0,
    }
    return SimpleNamespace(**known | attributes)


def _connector(**attributes: Any) -> Any:
    from lmcache.integration.vllm.vllm_v1_adapter import LMCacheConnectorV1Impl

    connector = LMCacheConnectorV1Impl.__new__(LMCacheConnectorV1Impl)
    known: dict[str, Any] = {
        "config": Mock(
            min_retrieve_tokens=0,
            enable_pd=False,
            priority_limit=None,
            save_decode_cache=False,
            get_extra_config_value=Mock(return_value=False),
        ),
        "kv_role": "kv_both",
        "device": "cpu",
        "use_layerwise": False,
        "enable_blending": False,
        "async_loading": True,
        "force_skip_save": False,
        "skip_last_n_tokens": 0,
        "load_specs": {},
        "_requests_priority": {},
        "_request_trackers": {},
        "_failed_loads": set(),
        "_invalid_block_ids": set(),
        "_max_tokens_per_load": 0,
        "_lmcache_chunk_size": CHUNK,
        "_block_size": BLOCK,
        "_discard_partial_chunks": True,
    }
    connector.__dict__.update(known | attributes)
    return connector
