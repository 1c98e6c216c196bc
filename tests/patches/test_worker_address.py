"""worker-address: a node is registered and reached at its own address; unpatched, its worker at every one."""

from __future__ import annotations

from tests.patches.upstream import Probe, patched_files, without


def test_an_unpatched_worker_registers_with_the_default_routes_address(probe: Probe) -> None:
    result = probe("worker-address", without("worker-address"))
    assert result.returncode == 1
    assert "should register with that address, not with 127.0.0.1" in result.stderr


def test_a_worker_bound_to_every_address_is_seen(probe: Probe) -> None:
    files = patched_files()
    name = "lmcache/v1/cache_controller/worker.py"
    files[name] = (files[name] or "").replace("{host or '*'}:", "*:")
    result = probe("worker-address", files)
    assert result.returncode == 1
    assert "The worker_port of a node at 127.0.0.2 should not answer at 127.0.0.1." in result.stderr
