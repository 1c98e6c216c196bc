"""double-free: every page has one owner; unpatched, the first pull frees its pages twice."""

from __future__ import annotations

import pytest
from double_free import PATCH
from upstream import Probe, patched_files, without


@pytest.mark.slow
def test_an_unpatched_engine_gives_pages_away_twice(probe: Probe) -> None:
    result = probe("double-free", PATCH, without(PATCH))
    assert result.returncode == 1
    assert "free_twice" in result.stderr or "have values of others" in result.stderr


def test_the_probe_passes_with_the_patch(probe: Probe) -> None:
    result = probe("double-free", PATCH, patched_files())
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["double-free: ok"]), result.stderr
