"""same-rank: a rank is sent to its own rank; unpatched, every rank to the first."""

from __future__ import annotations

from tests.patches.upstream import Probe, without


def test_an_unpatched_controller_sends_every_rank_to_the_first(probe: Probe) -> None:
    result = probe("same-rank", without("same-rank"))
    assert result.returncode == 1
    assert "Rank 1 should be sent to 'peer:1', but is to 'peer:0'." in result.stderr
