"""Probe of whole-graph: KV is loaded before a step that is one CUDA graph."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

from probes import ProbeError
from probes.adapter import BLOCK, CHUNK, worker_side


def probe() -> None:
    """Raises ProbeError unless a step's KV is loaded with attention metadata and without."""
    for attention in ({"layer": Mock()}, None):
        loaded = _loaded(SimpleNamespace(attn_metadata=attention))
        if loaded != ["request"]:
            of = "no attention metadata" if attention is None else "attention metadata"
            raise ProbeError(f"With {of} the KV of ['request'] should be loaded, but {loaded} is.")


def _loaded(context: SimpleNamespace) -> list[str]:
    """The requests whose KV a worker loads in a step of that forward context: all but a token of a prompt."""
    import torch
    from lmcache.integration.vllm import vllm_v1_adapter as adapter

    meta = adapter.LMCacheConnectorMetadata()
    meta.add_request(
        adapter.ReqMeta(
            "request",
            list(range(CHUNK + 1)),
            torch.arange(BLOCK, BLOCK + CHUNK + 1),
            is_last_prefill=True,
            load_spec=adapter.LoadSpec(0, CHUNK, can_load=True),
        )
    )
    engine = Mock()
    engine.retrieve.return_value = torch.ones(CHUNK, dtype=torch.bool)
    worker = worker_side(
        engine,
        _parent=Mock(**{"_get_connector_metadata.return_value": meta}),
        kv_caches={"layer": torch.zeros(1)},
        _stats_monitor=Mock(),
    )
    worker.start_load_kv(context)
    return [call.kwargs["req_id"] for call in engine.retrieve.call_args_list]
