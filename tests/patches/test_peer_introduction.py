"""peer-introduction: peers are connected before the first pull; unpatched, the first pull connects them."""

from __future__ import annotations

import pytest

from tests.patches.upstream import Probe, without, without_hunks


def test_an_unpatched_node_connects_to_nobody_by_itself(probe: Probe) -> None:
    result = probe("peer-introduction", without("peer-introduction"))
    assert result.returncode == 1
    assert "connected to a peer that was there before within 10 s, without a request" in result.stderr


@pytest.mark.slow
def test_without_the_heartbeats_peers_that_come_later_stay_unknown(probe: Probe) -> None:
    result = probe(
        "peer-introduction",
        without_hunks(
            "peer-introduction", lambda _, hunk: "_handle_heartbeat_commands(" in "".join(hunk.new)
        ),
    )
    assert result.returncode == 1
    assert "connected to a peer that came later within 10 s" in result.stderr
