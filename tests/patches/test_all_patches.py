"""What holds of every patch of LMCache: its probe passes with it, and can be seen red without it."""

from __future__ import annotations

import ast

import pytest
from guard.series import FOLDER, Patch, Series, render_sums
from probes.__main__ import SLOW

from tests.patches.upstream import EVERY, LMCACHE, Probe, original, patched_files, without

IN_TESTS_OF_THEIR_OWN = ("message-defaults", "cpu-connector", "lookup-loop", "pull-loop")
# The build of the image that these tests run in has run the quick probes.
PROBED = [
    pytest.param(patch, id=patch.id, marks=[] if patch.id in SLOW else [pytest.mark.slow])
    for patch in LMCACHE.patches
    if patch.id not in IN_TESTS_OF_THEIR_OWN
]


@pytest.mark.parametrize("patch", PROBED)
def test_the_probe_passes_with_the_patch(probe: Probe, patch: Patch) -> None:
    result = probe(patch.id, patched_files())
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, [f"{patch.id}: ok"]), result.stderr


@pytest.mark.parametrize("series", EVERY.values(), ids=EVERY)
def test_the_recorded_hashes_are_those_of_the_series(series: Series) -> None:
    released = {path: original(path, series.distribution) for path in series.files}
    contents = {path: text.encode() for path, text in released.items() if text is not None}
    recorded = FOLDER / f"{series.distribution}-{series.version}" / "SHA256SUMS"
    assert render_sums(series, contents) == recorded.read_text(), "run: make patches-edit patches"


@pytest.mark.parametrize("patch", LMCACHE.patches, ids=lambda patch: patch.id)
def test_a_patch_can_be_left_out(patch: Patch) -> None:
    files = without(patch.id)
    assert files != patched_files()
    for text in files.values():
        ast.parse(text or "")
