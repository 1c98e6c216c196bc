"""The series as it lies in the repository, against the files that it was made for."""

from __future__ import annotations

import ast

import pytest
from guard.series import FOLDER, Patch, Series, render_sums

from tests.patches.upstream import EVERY, PATCHES, original, patched_files, series_of, without


@pytest.mark.parametrize("series", EVERY.values(), ids=EVERY)
def test_the_recorded_hashes_are_those_of_the_series(series: Series) -> None:
    released = {path: original(path, series.distribution) for path in series.files}
    contents = {path: text.encode() for path, text in released.items() if text is not None}
    recorded = FOLDER / f"{series.distribution}-{series.version}" / "SHA256SUMS"
    assert render_sums(series, contents) == recorded.read_text(), "run: make patches-edit patches"


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.id)
def test_a_patch_can_be_left_out_with_what_needs_it(patch: Patch) -> None:
    files = without(patch.id)
    assert files != patched_files(series_of(patch.id))
    for text in files.values():
        ast.parse(text or "")


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.id)
def test_a_patch_applies_to_the_release_with_what_it_needs_alone(patch: Patch) -> None:
    wanted, series = {patch.id}, series_of(patch.id)
    for earlier in reversed(series.patches):
        if earlier.id in wanted:
            wanted |= earlier.needs
    files = patched_files(series.only(lambda one: one.id in wanted))
    for text in files.values():
        ast.parse(text or "")
