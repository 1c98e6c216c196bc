"""lanes: KV comes over several connections; unpatched, over one."""

from __future__ import annotations

import pytest
from lanes import PATCH
from upstream import Probe, without


@pytest.mark.slow
def test_an_unpatched_node_uses_one_connection(probe: Probe) -> None:
    result = probe("lanes", PATCH, without(PATCH))
    assert result.returncode == 1
    assert "KV should travel on 3 connections and does on 1." in result.stderr
