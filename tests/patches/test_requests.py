"""What requests may do to an engine and to each other: each patch's probe is red without it."""

from __future__ import annotations

import pytest

from tests.patches.upstream import Probe, without

UNPATCHED = {
    "resumed-request": "768 tokens should be loaded, but 512 are named",
    "unread-lookup": "1 lookups found 512 tokens",
    "lookup-ids": "one should be left and one cleaned up, but 1001 are",
    "request-fields": "KeyError('receiver_host')",
    "failed-load": "[] should be stored, but ['request'] is",
    "held-blocks": "the rest should not be stored",
    "identity": "should have keys of its own",
}


@pytest.mark.parametrize("patch", UNPATCHED)
def test_the_probe_fails_without_the_patch(probe: Probe, patch: str) -> None:
    result = probe(patch, without(patch))
    assert result.returncode == 1
    assert UNPATCHED[patch] in result.stderr
