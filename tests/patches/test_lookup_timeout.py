"""lookup-timeout: a lookup that timed out is a miss; unpatched, a KeyError."""

from __future__ import annotations

from tests.patches.upstream import Probe, without


def test_an_unpatched_client_raises_after_a_timeout(probe: Probe) -> None:
    result = probe("lookup-timeout", without("lookup-timeout"))
    assert result.returncode == 1
    assert "should be a miss, but is KeyError" in result.stderr
