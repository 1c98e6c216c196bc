"""p2p-threshold: pulls that would bring too little are not made; unpatched, all are."""

from __future__ import annotations

import pytest
from p2p_threshold import PATCH
from patch import Replacement
from upstream import Probe, without

BEFORE_ASKING, AFTER_ASKING = PATCH.replacements[2:4]


def test_an_unpatched_node_pulls_whatever_a_peer_has(probe: Probe) -> None:
    result = probe("p2p-threshold", PATCH, without(PATCH))
    assert result.returncode == 1
    assert "Where the whole prompt is too short, nothing should be pulled, but 32 tokens" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [
        (BEFORE_ASKING, "there should be 0 questions to the controller, but there are 1"),
        (AFTER_ASKING, "Where the peer holds too little, nothing should be pulled, but 32 tokens"),
    ],
)
def test_half_of_the_patch_is_not_enough(probe: Probe, left_out: Replacement, sentence: str) -> None:
    result = probe("p2p-threshold", PATCH, without(PATCH, left_out))
    assert result.returncode == 1
    assert sentence in result.stderr
