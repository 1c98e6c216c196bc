"""double-free: every page has one owner; unpatched, the first pull frees its pages twice."""

from __future__ import annotations

import pytest

from tests.patches.upstream import Probe, without


@pytest.mark.slow
def test_an_unpatched_engine_gives_pages_away_twice(probe: Probe) -> None:
    result = probe("double-free", without("double-free"))
    assert result.returncode == 1
    assert "free_twice" in result.stderr or "have values of others" in result.stderr
