"""`make patches-edit` and `make patches` on a made-up wheel: what git makes of the series, and back."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docker"))

from guard import edit  # noqa: E402
from guard.edit import EditError, open_series, save  # noqa: E402
from guard.series import Series, load, render_sums  # noqa: E402

UPSTREAM = "".join(f"line_{number} = {number}\n" for number in range(20))
CHANGING = """\
Subject: changing: one of the lines

What is wrong with it: non-ASCII, é, and a line
- that begins like a removed one.

* The line.

Forwarded: no; of nobody's interest,
 as this goes on
Last-Update: 2026-11-26
X-Kvshare-Devices: cpu, cuda
---
--- a/thing/first.py
+++ b/thing/first.py
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
ADDING = """\
Subject: adding: a module

It lacks.

X-Kvshare-Adds: thing/deep/added.py
X-Kvshare-Devices: cuda
---
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A series of two patches, as `make patches` leaves it."""
    folder = tmp_path / "patches" / "thing-1.0"
    (folder / "files/thing/deep").mkdir(parents=True)
    (folder / "files/thing/deep/added.py").write_text("ADDED = True\n")
    (folder / "changing.patch").write_text(CHANGING)
    (folder / "adding.patch").write_text(ADDING)
    (folder / "series").write_text("changing.patch\nadding.patch\n")
    (folder / "SHA256SUMS").touch()
    (folder / "SHA256SUMS").write_text(render_sums(load(folder), {"thing/first.py": UPSTREAM.encode()}))
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/__init__.py", "")
        archive.writestr("thing/first.py", UPSTREAM)
        archive.writestr("thing/library.so", "not for git")
    return wheel


@pytest.fixture
def work(tmp_path: Path, wheel: Path, folder: Path) -> Path:
    """The series as a repository."""
    work = tmp_path / "build" / "thing-1.0"
    open_series(load(folder), wheel, work)
    return work


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The source distribution, which alone holds the tests."""
    path = tmp_path / "thing-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("thing-1.0/tests/test_first.py")
        member.size = len(UPSTREAM)
        tar.addfile(member, io.BytesIO(UPSTREAM.encode()))
    return path


def git(work: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=someone", "-c", "user.email=someone@localhost", *arguments]
    return subprocess.run(command, cwd=work, check=True, capture_output=True, text=True).stdout


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_each_patch_is_a_commit_on_the_release(work: Path) -> None:
    subjects = git(work, "log", "--reverse", "--format=%s").splitlines()
    assert subjects == [edit.RELEASE, "changing: one of the lines", "adding: a module"]
    assert "line_9 = 90\n" in (work / "thing/first.py").read_text()
    assert (work / "thing/deep/added.py").read_text() == "ADDED = True\n"
    assert not (work / "thing/library.so").exists()


def test_saving_what_was_opened_changes_nothing(work: Path, folder: Path) -> None:
    before = content(folder)
    for _ in range(2):
        save(work, folder)
        assert content(folder) == before


def test_rewritten_commits_become_the_series(work: Path, folder: Path) -> None:
    old = load(folder)
    text = (work / "thing/first.py").read_text()
    (work / "thing/first.py").write_text(text.replace("line_19 = 19", "line_19 = 0"))
    message = "third: another line\n\nIt is wrong.\n\nX-Kvshare-Devices: cpu\n"
    git(work, "commit", "--quiet", "--all", "--message", message)
    save(work, folder)
    new = load(folder)
    assert [patch.id for patch in new.patches] == ["changing", "adding", "third"]
    assert new.patches[:2] == old.patches
    assert "-line_19 = 19\n+line_19 = 0\n" in new.patches[2].diff
    assert {name for name in new.sums if "first" in name} == {
        "before/thing/first.py",
        "after-cpu/thing/first.py",
        "after-cuda/thing/first.py",
    }


def test_a_patch_carries_a_changed_test_that_no_package_holds(
    tmp_path: Path, wheel: Path, archive: Path, folder: Path
) -> None:
    work = tmp_path / "with-tests"
    open_series(load(folder), wheel, work, archive)
    (work / "tests/test_first.py").write_text(UPSTREAM.replace("line_9 = 9", "line_9 = 90"))
    message = "third: a test\n\nIt is wrong.\n\nX-Kvshare-Devices: cpu\n"
    git(work, "commit", "--quiet", "--all", "--message", message)
    sums = load(folder).sums
    save(work, folder)
    new = load(folder)
    assert new.tests == new.patches[2].tests == ("tests/test_first.py",)
    assert "+line_9 = 90\n" in new.patches[2].diff
    assert new.files == ("thing/first.py", "thing/deep/added.py")
    assert new.sums == sums


def test_a_commit_that_is_gone_takes_its_files_along(work: Path, folder: Path) -> None:
    git(work, "reset", "--quiet", "--hard", "HEAD^")
    save(work, folder)
    assert set(content(folder)) == {"changing.patch", "series", "SHA256SUMS"}


def test_the_diff_has_no_ids_of_git(work: Path, folder: Path) -> None:
    save(work, folder)
    assert "index " not in (folder / "changing.patch").read_text()


def test_what_is_in_no_commit_is_not_lost(work: Path, folder: Path) -> None:
    (work / "thing/first.py").write_text("# unfinished\n")
    before = content(folder)
    with pytest.raises(EditError, match="has changes in no commit"):
        save(work, folder)
    assert content(folder) == before
    with pytest.raises(EditError, match="is there already: save it with `make patches`"):
        open_series(load(folder), Path("no.whl"), work)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("no id at all", "Expected the subject 'id: title' and found 'Subject: no id at all'"),
        (
            "third: a module\n\nIt lacks.\n\nX-Kvshare-Devices: cpu\n",
            r"adds thing/new\.py: say so in its X-Kv",
        ),
    ],
)
def test_a_message_that_is_no_header_is_refused(
    work: Path, folder: Path, message: str, sentence: str
) -> None:
    (work / "thing/new.py").write_text("NEW = True\n")
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message", message)
    before = content(folder)
    with pytest.raises(EditError, match=sentence):
        save(work, folder)
    assert content(folder) == before


def test_a_lock_with_another_version_is_refused(tmp_path: Path, folder: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("thing==1.1 \\\n    --hash=sha256:00\nother==1.0 \\\n    --hash=sha256:00\n")
    with pytest.raises(EditError, match=r"Expected thing 1\.0 in .*lock\.txt and found 1\.1"):
        edit.fetch(load(folder), tmp_path, [lock])


def test_a_patch_that_does_not_fit_the_release_is_named_by_git(tmp_path: Path, folder: Path) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/first.py", "moved = on\n")
    series: Series = load(folder)
    with pytest.raises(EditError, match=r"`git .*am .* failed in"):
        open_series(series, wheel, tmp_path / "work")
