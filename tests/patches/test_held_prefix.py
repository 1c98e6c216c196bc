"""held-prefix: what vLLM holds itself is not pulled; unpatched, all of it is, again and again."""

from __future__ import annotations

from tests.patches.upstream import Probe, without


def test_an_unpatched_node_pulls_what_vllm_holds(probe: Probe) -> None:
    result = probe("held-prefix", without("held-prefix"))
    assert result.returncode == 1
    assert "With 3 of 3 chunks held by vLLM, 0 should be found, but got {'hits': 48" in result.stderr
