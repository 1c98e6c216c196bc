"""export-interval: LMCache exports its counters as often as it is told to; unpatched, every 10 s."""

from __future__ import annotations

from tests.patches.upstream import Probe, without


def test_an_unpatched_node_exports_every_ten_seconds(probe: Probe) -> None:
    result = probe("export-interval", without("export-interval"))
    assert result.returncode == 1
    assert "A store should be counted within 3 s and was not" in result.stderr
