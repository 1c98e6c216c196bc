"""p2p-threshold: pulls that would bring too little are not made; unpatched, all are."""

from __future__ import annotations

import pytest

from tests.patches.upstream import Probe, without, without_hunks


def test_an_unpatched_node_pulls_whatever_a_peer_has(probe: Probe) -> None:
    result = probe("p2p-threshold", without("p2p-threshold"))
    assert result.returncode == 1
    assert "Where the whole prompt is too short, nothing should be pulled, but 32 tokens" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [
        ("self._declines(keys):", "there should be 0 questions to the controller, but there are 1"),
        (
            "self._declines(keys[:num_hit_chunks]):",
            "Where the peer holds too little, nothing should be pulled, but 32 tokens",
        ),
    ],
)
def test_half_of_the_patch_is_not_enough(probe: Probe, left_out: str, sentence: str) -> None:
    result = probe(
        "p2p-threshold", without_hunks("p2p-threshold", lambda _, hunk: left_out in "".join(hunk.new))
    )
    assert result.returncode == 1
    assert sentence in result.stderr
