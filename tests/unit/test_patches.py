"""docker/patches as it is: each header says what must be said, and what is made of them is current."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docker"))

from guard import __main__ as command  # noqa: E402
from guard import upstream  # noqa: E402
from guard.series import DEVICES, FOLDER, Patch, Series, load_all  # noqa: E402
from probes.__main__ import SLOW  # noqa: E402

EVERY = load_all()
PATCHES = [patch for series in EVERY for patch in series.patches]
EACH = pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.id)
MAIL_LINE = 80


@EACH
def test_each_patch_says_why_how_it_is_proven_and_when_to_drop_it(patch: Patch) -> None:
    assert patch.title
    assert "\n* " in patch.text, "what is wrong, then what changes"
    assert patch.devices
    assert patch.devices <= set(DEVICES)
    assert patch.field("X-Kvshare-Probe").partition("; ")[2]
    for name in ("Forwarded", "Last-Update", "X-Kvshare-Drop-When"):
        assert patch.field(name), name
    assert max(map(len, patch.head.splitlines())) <= MAIL_LINE


@EACH
def test_each_patch_says_whether_it_was_offered_upstream(patch: Patch) -> None:
    why = patch.field("Forwarded").partition("; ")[2]
    assert patch.forwarded in ("no", "not-needed") or patch.forwarded.startswith("https://")
    assert why
    assert all(url.startswith("https://") for url in patch.fields.get("Bug", ()))


@EACH
def test_each_patch_has_a_probe_of_its_own(patch: Patch) -> None:
    assert (ROOT / "docker/probes" / f"{patch.probe}.py").is_file()
    assert [other.id for other in PATCHES if other.probe == patch.probe] == [patch.id]


def test_ids_are_unique_and_what_is_slow_exists() -> None:
    ids = [patch.id for patch in PATCHES]
    assert len(set(ids)) == len(ids)
    assert set(SLOW) <= set(ids)


@pytest.mark.parametrize("series", EVERY, ids=lambda series: series.distribution)
def test_what_a_patch_needs_comes_before_it_on_the_same_devices(series: Series) -> None:
    earlier: dict[str, Patch] = {}
    for patch in series.patches:
        assert patch.needs <= set(earlier)
        assert all(patch.devices <= earlier[needed].devices for needed in patch.needs)
        earlier[patch.id] = patch


@pytest.mark.parametrize("series", EVERY, ids=lambda series: series.distribution)
def test_nothing_lies_in_the_folder_that_no_patch_names(series: Series) -> None:
    folder = FOLDER / f"{series.distribution}-{series.version}"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    named = {f"{patch.id}.patch" for patch in series.patches} | {
        f"files/{name}" for patch in series.patches for name in patch.added
    }
    assert {path for path in found if "__pycache__" not in path} == named | {"series", "SHA256SUMS"}
    assert {name.partition("/")[2] for name in series.sums} == set(series.files)


def test_the_documentation_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--docs"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "patches.md").read_text(), "run: make generate"


def test_what_was_never_sent_can_be_and_is_current() -> None:
    found = {path.name: path.read_text() for path in (ROOT / "docs/upstream").iterdir()}
    assert found == upstream.texts(EVERY), "run: make generate"


@EACH
def test_each_text_for_upstream_has_its_three_parts(patch: Patch) -> None:
    series = next(series for series in EVERY if patch in series.patches)
    text = upstream.render(series, patch)
    problem, reproduction = text.split("## Problem\n\n")[1].split("## Reproduction\n\n")
    assert len(problem.split()) > 10
    assert len(reproduction.partition(":")[0].split()) > 4, "what the probe's docstring says"
    assert all(f"+++ b/{name}\n" in text for name in (*patch.hunks, *patch.added))
