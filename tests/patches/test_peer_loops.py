"""peer-loops: bad messages end no loop of a node; unpatched, the first ends all pulls."""

from __future__ import annotations

import pytest
from peer_loops import PATCH
from upstream import Probe, patched_files, without


@pytest.mark.slow
def test_an_unpatched_node_cannot_be_pulled_from_after_bad_messages(probe: Probe) -> None:
    result = probe("peer-loops", PATCH, without(PATCH))
    assert result.returncode == 1
    assert "After bad messages on its P2P sockets nobody can pull from a node." in result.stderr


def test_the_probe_passes_with_the_patch(probe: Probe) -> None:
    result = probe("peer-loops", PATCH, patched_files())
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["peer-loops: ok"]), result.stderr
