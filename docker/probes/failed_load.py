"""Probe of failed-load: what was computed on tokens that were not loaded is not stored."""

from __future__ import annotations

from unittest.mock import Mock

from probes import ProbeError
from probes.adapter import BLOCK, CHUNK, worker_side

TOKENS, PROMISED = 4 * CHUNK, 2 * CHUNK


def probe() -> None:
    """Raises ProbeError unless a request is stored exactly if all that it was promised was loaded."""
    for loaded, expected in ((PROMISED, ["request"]), (CHUNK, [])):
        stored = _stored_in_a_step(loaded)
        if stored != expected:
            raise ProbeError(
                f"With {loaded} of {PROMISED} promised tokens loaded, {expected} should be stored, "
                f"but {stored} is."
            )


def _stored_in_a_step(loaded: int) -> list[str]:
    """The requests that a worker stores in a step: it loads, computes, stores."""
    import torch
    from lmcache.integration.vllm import vllm_v1_adapter as adapter

    meta = adapter.LMCacheConnectorMetadata()
    meta.add_request(
        adapter.ReqMeta(
            "request",
            list(range(TOKENS)),
            torch.arange(BLOCK, BLOCK + TOKENS),
            is_last_prefill=True,
            save_spec=adapter.SaveSpec(PROMISED, can_save=True),
            load_spec=adapter.LoadSpec(0, PROMISED, can_load=True),
        )
    )
    engine = Mock()
    engine.retrieve.return_value = torch.arange(PROMISED) < loaded
    worker = worker_side(
        engine,
        _parent=Mock(**{"_get_connector_metadata.return_value": meta}),
        kv_caches={"layer": torch.zeros(1)},
        _stats_monitor=Mock(),
    )
    adapter.get_pp_group = Mock()  # vLLM sets none up here
    worker.start_load_kv(Mock())
    worker.wait_for_save()
    return [call.kwargs["req_id"] for call in engine.store.call_args_list]
