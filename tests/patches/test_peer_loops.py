"""peer-loops: bad messages end no loop of a node; unpatched, the first ends all pulls."""

from __future__ import annotations

import pytest

from tests.patches.upstream import Probe, without


@pytest.mark.slow
def test_an_unpatched_node_cannot_be_pulled_from_after_bad_messages(probe: Probe) -> None:
    result = probe("peer-loops", without("peer-loops"))
    assert result.returncode == 1
    assert "After bad messages on its P2P sockets nobody can pull from a node." in result.stderr
