"""full-sync: a controller that was away learns every key; unpatched, not those of the freeze."""

from __future__ import annotations

from full_sync import PATCH
from upstream import Probe, patched_files, without


def test_an_unpatched_worker_loses_keys(probe: Probe) -> None:
    result = probe("full-sync", PATCH, without(PATCH))
    assert result.returncode == 1
    assert "The controller should be synchronised and know" in result.stderr


def test_the_probe_passes_with_the_patch(probe: Probe) -> None:
    result = probe("full-sync", PATCH, patched_files())
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["full-sync: ok"]), result.stderr
