"""Probe of mp-server-gone: a worker that its cache server does not know registers again."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from probes import ProbeError
from probes.mp_cluster import engine_of_a_server, registration

ANSWER_S = 60.0
WORKER = 1


def probe() -> None:
    """Raises ProbeError unless a server that does not know a worker is told of it, and a lost store fails."""
    _require_failed_store()
    with engine_of_a_server() as server:
        _require_registration(server)


def _require_registration(server: Any) -> None:
    from lmcache.integration.vllm.vllm_multi_process_adapter import HeartbeatThread

    healthy, told = threading.Event(), []
    healthy.set()

    def tell() -> bool:
        server.register_kv_cache_engine_driven_context(registration(WORKER)).result(timeout=ANSWER_S)
        told.append(WORKER)
        return True

    heartbeat = HeartbeatThread(server, healthy, ANSWER_S, WORKER)
    heartbeat.register_recover_callback(tell)
    for _ in range(2):
        heartbeat._execute()
        if told != [WORKER] or not healthy.is_set():
            raise ProbeError(f"A server that does not know a worker should be told of it once, not {told}.")


def _require_failed_store() -> None:
    from lmcache.integration.vllm.vllm_multi_process_adapter import LMCacheMPWorkerAdapter

    worker = LMCacheMPWorkerAdapter.__new__(LMCacheMPWorkerAdapter)
    context = Mock()
    context.submit_store.side_effect = TimeoutError("no answer")
    worker.__dict__.update(
        transfer_ctx=context,
        kv_caches={},
        blocks_in_chunk=16,
        store_futures={},
        lazy_offload=False,
        parallel_strategy=SimpleNamespace(is_kv_writer=True),
        _heartbeat=object(),
        _health_event=threading.Event(),
        _create_key=Mock(),
        _block_ids_per_group=Mock(),
        _kv_events_enabled=False,
    )
    worker._health_event.set()
    try:
        worker.submit_store_request("request", SimpleNamespace(token_ids=[1], start=0, end=1), None)
    except TimeoutError as error:
        raise ProbeError(f"A store that is not answered should fail, but ends the engine: {error}") from error
    if worker.store_futures["request"].result(timeout=0) or worker.is_healthy:
        raise ProbeError("A store that is not answered should be one that failed.")
