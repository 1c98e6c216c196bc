"""What holds of every patch of LMCache: its probe passes with it, and can be seen red without it."""

from __future__ import annotations

import ast

import pytest
from patch import Patch
from probe import OF_DEVICE
from upstream import LMCACHE, Probe, patched_files, without

IN_TESTS_OF_THEIR_OWN = ("message-defaults", "cpu-connector", "lookup-loop", "pull-loop")
# The build of the image that these tests run in has run the quick probes.
PROBED = [
    pytest.param(patch, id=patch.id, marks=[pytest.mark.slow] if patch.id in OF_DEVICE["cpu"] else [])
    for patch in LMCACHE
    if patch.id not in IN_TESTS_OF_THEIR_OWN
]


@pytest.mark.parametrize("patch", PROBED)
def test_the_probe_passes_with_the_patch(probe: Probe, patch: Patch) -> None:
    result = probe(patch.id, patch, patched_files())
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, [f"{patch.id}: ok"]), result.stderr


@pytest.mark.parametrize("patch", LMCACHE, ids=lambda patch: patch.id)
def test_a_patch_can_be_left_out(patch: Patch) -> None:
    files = without(patch)
    assert files != patched_files()
    for text in files.values():
        ast.parse(text)
