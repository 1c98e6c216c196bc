"""full-sync: a controller that was away learns every key; unpatched, not those of the freeze."""

from __future__ import annotations

import re

import pytest
from full_sync import PATCH
from upstream import Probe, without

# What makes the controller say whether a worker is synchronised stays: the probe asks for it.
BEHAVIOUR = [r for edit in PATCH.edits if "worker_info_api" not in edit.module for r in edit.replacements]


@pytest.mark.slow
def test_an_unpatched_worker_loses_keys(probe: Probe) -> None:
    result = probe("full-sync", PATCH, without(PATCH, *BEHAVIOUR))
    assert result.returncode == 1
    found = re.search(r"know (\d+) keys, but has \((?:True|False), (\d+)\)", result.stderr)
    assert found is not None, result.stderr
    assert int(found[2]) < int(found[1])
