"""full-sync: a controller that was away learns every key; unpatched, not those of the freeze."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from tests.patches.upstream import Probe, without_hunks


@pytest.mark.slow
def test_an_unpatched_worker_loses_keys(probe: Probe) -> None:
    # What makes the controller say whether a worker is synchronised stays: the probe asks for it.
    result = probe("full-sync", without_hunks("full-sync", lambda hunk: "synced" not in "".join(hunk.new)))
    assert result.returncode == 1
    found = re.search(r"know (\d+) keys, but has \((?:True|False), (\d+)\)", result.stderr)
    assert found is not None, result.stderr
    assert int(found[2]) < int(found[1])


def test_a_worker_whose_cache_is_still_being_made_waits_for_the_next_command() -> None:
    from lmcache.v1.cache_controller.worker import LMCacheWorker

    executed: list[object] = []
    command = SimpleNamespace(describe=lambda: "full sync", execute=executed.append)
    answer = SimpleNamespace(has_commands=lambda: True, commands=[command])
    worker = SimpleNamespace(lmcache_engine=SimpleNamespace(storage_manager=None))
    LMCacheWorker._handle_heartbeat_commands(worker, answer)
    assert executed == []
    worker.lmcache_engine.storage_manager = "made"
    LMCacheWorker._handle_heartbeat_commands(worker, answer)
    assert executed == [worker]
