"""dead-peer: a dead peer holds nobody up; unpatched, it holds everybody up."""

from __future__ import annotations

import pytest

from tests.patches.upstream import Probe, without


@pytest.mark.slow
def test_an_unpatched_node_is_held_up_by_a_dead_peer(probe: Probe) -> None:
    result = probe("dead-peer", without("dead-peer"))
    assert result.returncode == 1
    assert "With a peer stopped" in result.stderr
