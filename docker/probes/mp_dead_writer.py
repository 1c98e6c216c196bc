"""Probe of mp-dead-writer: what a worker asked room for and never wrote is nobody's KV."""

from __future__ import annotations

from typing import Any

from probes import ProbeError
from probes.mp_cluster import CHUNK, engine_of_a_server, registration

ANSWER_S = 60.0
DEAD, ALIVE = 1, 2  # workers


def probe() -> None:
    """Raises ProbeError if a chunk is found that was never committed."""
    with engine_of_a_server() as server:
        _register(server, DEAD)
        server.prepare_store(_key("store", worker=0), DEAD).result(timeout=ANSWER_S)
        server.unregister_kv_cache_engine_driven_context(DEAD).result(timeout=ANSWER_S)
        _register(server, ALIVE)
        server.lookup(_key("lookup", worker=None), 1).result(timeout=ANSWER_S)
        found = server.wait_prefetch_status("lookup", ANSWER_S).result(timeout=2 * ANSWER_S)
        if found:
            raise ProbeError(f"Of what was never written nothing should be found, but {found} chunk is.")


def _register(server: Any, worker: int) -> None:
    server.register_kv_cache_engine_driven_context(registration(worker)).result(timeout=ANSWER_S)


def _key(request: str, worker: int | None) -> Any:
    from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey

    return IPCCacheServerKey(
        num_kv_readers=1,
        model_name="probe",
        world_size=1,
        worker_id=worker,
        token_ids=tuple(range(CHUNK)),
        start=0,
        end=CHUNK,
        request_id=request,
    )
