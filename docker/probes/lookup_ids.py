"""Probe of lookup-ids: a request that ends leaves nothing behind in the lookup client or the connector."""

from __future__ import annotations

import threading
from typing import Any
from unittest.mock import Mock

from probes import ProbeError
from probes.adapter import request, scheduler_side

ENDED = 1000


def probe() -> None:
    """Raises ProbeError if requests that were cancelled, looked up or not, are remembered."""
    from lmcache.v1.lookup_client.lmcache_async_lookup_client import LMCacheAsyncLookupClient

    client: Any = LMCacheAsyncLookupClient.__new__(LMCacheAsyncLookupClient)
    socket = Mock()
    client.__dict__.update(
        lock=threading.Lock(),
        aborted_lookups=set(),
        reqs_status={"found": 512, "on its way": None},
        first_lookup_time={},
        world_size=1,
        push_sockets=[socket],
    )
    for number in range(ENDED):
        client.cancel_lookup(f"scheduled long ago {number}")
    client.cancel_lookup("found")
    client.cancel_lookup("on its way")
    client._cleanup_finished_aborted_lookups()
    if client.aborted_lookups != {"on its way"} or socket.send.call_count != 1:
        left = len(client.aborted_lookups)
        raise ProbeError(
            f"Of {ENDED + 2} ids one should be left and one cleaned up, "
            f"but {left} are and {socket.send.call_count}."
        )
    _require_nothing_kept()


def _require_nothing_kept() -> None:
    from vllm.v1.request import RequestStatus

    connector = scheduler_side(hits=512)
    ended = request(list(range(600)), status=RequestStatus.FINISHED_ABORTED)
    connector.get_num_new_matched_tokens(ended, 0)
    connector.request_finished(ended, [])
    kept = [name for name in ("load_specs", "_requests_priority") if getattr(connector, name)]
    if kept:
        raise ProbeError(f"A request that ends before it is scheduled should be forgotten, but is in {kept}.")
