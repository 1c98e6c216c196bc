"""Probe of mp-stored-first: a step that is told to ends once what it stores is stored."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

from probes import ProbeError

TAKES_S, PATIENCE_S = 0.3, 1.0
TOLD = "LMCACHE_MP_STORED_FIRST"
REQUEST = "stored"


def probe() -> None:
    """Raises ProbeError unless a step waits for its store, and not for ever."""
    os.environ[TOLD] = "1"
    if not _stored_when_the_step_ends(answered=True):
        raise ProbeError("A step that is told to should end when it is stored, and ends before.")
    step = threading.Thread(target=_stored_when_the_step_ends, args=(False,), daemon=True)
    step.start()
    step.join(10 * PATIENCE_S)
    if step.is_alive():
        raise ProbeError("A step whose store is never answered should end all the same.")


def _stored_when_the_step_ends(answered: bool) -> bool:
    from lmcache.integration.vllm.lmcache_mp_connector import LMCacheMPConnector
    from lmcache.integration.vllm.lmcache_mp_metadata import LMCacheMPConnectorMetadata
    from lmcache.integration.vllm.vllm_multi_process_adapter import LMCacheMPWorkerAdapter
    from lmcache.v1.multiprocess.futures import MessagingFuture

    future: Any = MessagingFuture()

    def store(*_: Any, **__: Any) -> None:
        worker.store_futures[REQUEST] = future
        if answered:
            threading.Timer(TAKES_S, future.set_result, (True,)).start()

    worker = LMCacheMPWorkerAdapter.__new__(LMCacheMPWorkerAdapter)
    worker.store_futures = {}
    worker.create_recorded_event = lambda: None
    worker.batched_submit_store_requests = store
    connector = LMCacheMPConnector.__new__(LMCacheMPConnector)
    connector.worker_adapter, connector.dispatcher = worker, None
    metadata = LMCacheMPConnectorMetadata()
    metadata.requests = [
        SimpleNamespace(direction="STORE", request_id=REQUEST, op=None, cache_salt="", request_configs=None)
    ]
    connector._connector_metadata = metadata
    connector.wait_for_save()
    return bool(future.query())
