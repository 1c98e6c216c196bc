"""Every patch can be taken back by itself, or its probe could never be seen red."""

from __future__ import annotations

import ast

import pytest
from patch import Patch
from upstream import LMCACHE, patched_files, without


@pytest.mark.parametrize("patch", LMCACHE, ids=lambda patch: patch.id)
def test_a_patch_can_be_left_out(patch: Patch) -> None:
    files = without(patch)
    assert files != patched_files()
    for text in files.values():
        ast.parse(text)
