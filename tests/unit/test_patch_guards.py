"""The guards of docker/guard, each going red, on a made-up package and patches: no LMCache needed."""

from __future__ import annotations

import importlib.util
import json
import py_compile
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docker"))

from guard import __main__ as command  # noqa: E402
from guard import apply  # noqa: E402
from guard.apply import RefusedError, commit, plan  # noqa: E402
from guard.series import Series, SeriesError, load, load_all, render_sums  # noqa: E402

FIRST = "LIMIT = 1\nNAME = 'first'\n"
SECOND = "LIMIT = 1\nNAME = 'second'\n"
RAISE_LIMIT = """\
@@ -1,2 +1,2 @@
-LIMIT = 1
+LIMIT = 2
 NAME = '{name}'
"""


@dataclass(frozen=True)
class Site:
    """A folder with package ``thing`` 1.0: two modules, and an __init__ that must not be imported."""

    path: Path

    def file(self, name: str) -> Path:
        return self.path / "thing" / f"{name}.py"

    def files(self) -> dict[str, str]:
        """Every file but bytecode, by its path in the site."""
        paths = (p for p in self.path.rglob("*") if p.is_file() and p.suffix != ".pyc")
        return {p.relative_to(self.path).as_posix(): p.read_text() for p in paths}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    package = tmp_path / "site" / "thing"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('the guard must not import the package')\n")
    (package / "first.py").write_text(FIRST)
    (package / "second.py").write_text(SECOND)
    info = package.parent / "thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    return Site(package.parent)


class Folder:
    """A folder of patches to ``thing`` 1.0, written as they lie in docker/patches."""

    def __init__(self, path: Path) -> None:
        self.path = path / "thing-1.0"
        self.path.mkdir(parents=True)
        self.originals = {"thing/first.py": FIRST.encode(), "thing/second.py": SECOND.encode()}

    def add(self, patch_id: str, file: str, hunks: str, fields: str = "") -> None:
        """Write a patch of one file, and name it last in the series."""
        head = f"Subject: {patch_id}: a title\n\nWhat is wrong.\n\n{fields}X-Kvshare-Devices: cpu\n---\n"
        diff = f"--- a/thing/{file}.py\n+++ b/thing/{file}.py\n{hunks}" if hunks else ""
        (self.path / f"{patch_id}.patch").write_text(head + diff)
        with (self.path / "series").open("a") as series:
            series.write(f"{patch_id}.patch\n")

    def add_file(self, name: str, content: str) -> None:
        target = self.path / "files" / "thing" / f"{name}.py"
        target.parent.mkdir(parents=True)
        target.write_text(content)

    def load(self) -> Series:
        """The series, its sums made as `make patches` makes them."""
        sums = self.path / "SHA256SUMS"
        sums.touch()
        sums.write_text(render_sums(load(self.path), self.originals))
        return load(self.path)

    def load_with_sum(self, name: str, value: str) -> Series:
        """The series with another sum recorded."""
        found = self.load().sums[name]
        sums = self.path / "SHA256SUMS"
        sums.write_text(sums.read_text().replace(f"{found}  {name}", f"{value}  {name}"))
        return load(self.path)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder that has no patch yet."""
    return Folder(tmp_path / "patches")


@pytest.fixture
def two(folder: Folder) -> Series:
    """A patch of each module."""
    for name in ("first", "second"):
        folder.add(f"patch-{name}", name, RAISE_LIMIT.format(name=name))
    return folder.load()


def test_what_a_patch_changes_in_upstreams_tests_is_not_installed(site: Site, folder: Folder) -> None:
    folder.add("patch-first", "first", RAISE_LIMIT.format(name="first"))
    with (folder.path / "patch-first.patch").open("a") as patch:
        patch.write(
            f"--- a/tests/test_first.py\n+++ b/tests/test_first.py\n{RAISE_LIMIT.format(name='test')}"
        )
    series = folder.load()
    applied(site, series)
    assert site.file("first").read_text() == "LIMIT = 2\nNAME = 'first'\n"
    assert series.tests == ("tests/test_first.py",)
    assert not (site.path / "tests").exists()


def hash_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def applied(site: Site, *series: Series) -> None:
    commit(plan(series, "cpu", site.path))


def test_a_known_file_is_patched_and_compiled(site: Site, two: Series) -> None:
    applied(site, two)
    assert site.file("first").read_text() == "LIMIT = 2\nNAME = 'first'\n"
    assert site.file("second").read_text() == "LIMIT = 2\nNAME = 'second'\n"
    compiled = Path(importlib.util.cache_from_source(str(site.file("first"))))
    by_hash_and_checked = 0b11
    assert int.from_bytes(compiled.read_bytes()[4:8], "little") == by_hash_and_checked


def test_old_bytecode_does_not_outlive_its_source(site: Site, two: Series) -> None:
    target = site.file("first")
    py_compile.compile(str(target), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    applied(site, two)
    spec = importlib.util.spec_from_file_location("first", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.LIMIT == 2


def test_the_mode_of_a_file_is_kept(site: Site, two: Series) -> None:
    site.file("first").chmod(0o640)
    applied(site, two)
    assert site.file("first").stat().st_mode & 0o777 == 0o640


def test_a_second_run_changes_nothing(site: Site, two: Series) -> None:
    applied(site, two)
    written = site.file("first").stat().st_mtime_ns
    again = plan([two], "cpu", site.path)
    assert [change.applied for change in again] == [True, True]
    commit(again)
    assert site.file("first").stat().st_mtime_ns == written


def test_an_unknown_file_is_refused(site: Site, two: Series) -> None:
    site.file("second").write_text(SECOND + "# moved on\n")
    before = site.files()
    with pytest.raises(RefusedError) as refusal:
        applied(site, two)
    assert str(refusal.value) == (
        f"Patch patch-second expects thing/second.py of thing 1.0 with sha256 {hash_of(SECOND)}, "
        f"but {site.file('second')} has {hash_of(SECOND + '# moved on' + chr(10))}; "
        "reinstall that release, or adapt the patch to this file."
    )
    assert site.files() == before, "the patch of the first file was written although the second was refused"


def test_another_version_is_refused_even_with_the_same_file(site: Site, two: Series) -> None:
    (site.path / "thing-1.0.dist-info").rename(site.path / "thing-1.1.dist-info")
    metadata = site.path / "thing-1.1.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    with pytest.raises(RefusedError) as refusal:
        applied(site, two)
    assert str(refusal.value) == (
        "Patch patch-first expects thing/first.py of thing 1.0, but 1.1 of thing is installed in "
        f"{site.path}; adapt the patch to this release or pin the old one."
    )


def test_a_package_without_metadata_is_refused(site: Site, two: Series) -> None:
    (site.path / "thing-1.0.dist-info" / "METADATA").unlink()
    (site.path / "thing-1.0.dist-info").rmdir()
    with pytest.raises(RefusedError, match="but no version of thing is installed"):
        applied(site, two)


def test_a_missing_package_is_refused(tmp_path: Path, two: Series) -> None:
    with pytest.raises(
        RefusedError, match=r"expects thing/first\.py of thing 1\.0, but no package thing is in"
    ):
        plan([two], "cpu", tmp_path)


def test_a_missing_module_is_refused(site: Site, two: Series) -> None:
    site.file("first").unlink()
    with pytest.raises(RefusedError, match=r"but there is no .*first\.py; adapt the patch"):
        applied(site, two)


@pytest.mark.parametrize(
    ("text", "times"),
    [("NAME = 'x'\n" + FIRST + FIRST, 2), ("NAME = 'first'\n", 0), (" LIMIT = 1\nNAME = 'first'\n", 0)],
    ids=["twice, elsewhere", "never", "as part of a line"],
)
def test_text_that_is_not_there_exactly_once_is_refused(
    site: Site, folder: Folder, two: Series, text: str, times: int
) -> None:
    site.file("first").write_text(text)
    recorded = folder.load_with_sum("before/thing/first.py", hash_of(text))
    assert recorded.sums != two.sums
    with pytest.raises(
        RefusedError, match=f"hunk 1 exactly once or at line 1, but it stands {times} times in"
    ):
        applied(site, recorded)


def test_text_that_is_there_twice_is_changed_at_its_line(site: Site, folder: Folder) -> None:
    twice = FIRST + FIRST
    site.file("first").write_text(twice)
    folder.originals["thing/first.py"] = twice.encode()
    folder.add("second-one", "first", RAISE_LIMIT.format(name="first").replace("1,2 +1,2", "3,2 +3,2"))
    applied(site, folder.load())
    assert site.file("first").read_text() == FIRST + FIRST.replace("1", "2")


def test_a_result_that_does_not_compile_is_refused(site: Site, folder: Folder) -> None:
    folder.add("patch-first", "first", RAISE_LIMIT.format(name="first").replace("LIMIT = 2", "LIMIT = ("))
    with pytest.raises(RefusedError, match=r"does not compile .*correct the patch"):
        applied(site, folder.load())


def test_a_result_with_another_hash_is_refused(site: Site, folder: Folder, two: Series) -> None:
    recorded = folder.load_with_sum("after/thing/first.py", "0" * 64)
    assert recorded.sums != two.sums
    with pytest.raises(RefusedError, match=rf"to become sha256 {'0' * 64}, but .* would become"):
        applied(site, recorded)


@pytest.mark.parametrize("name", ["before/thing/first.py", "after/thing/first.py"])
def test_a_file_without_a_recorded_hash_is_refused(site: Site, two: Series, name: str) -> None:
    sums = {key: value for key, value in two.sums.items() if key != name}
    unknown = Series(two.distribution, two.version, two.patches, sums)
    with pytest.raises(RefusedError, match="but SHA256SUMS does not know it; run `make patches`"):
        applied(site, unknown)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_between_two_writes_takes_the_first_back(
    site: Site, two: Series, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = site.files()
    changes = plan([two], "cpu", site.path)

    def fail_on_second(path: Path) -> None:
        if path == site.file("second"):
            raise error

    monkeypatch.setattr(apply, "_compile", fail_on_second)
    with pytest.raises(type(error)):
        commit(changes)
    assert site.files() == before


def test_a_full_disk_leaves_everything_as_it_was(
    site: Site, two: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = site.files()
    changes = plan([two], "cpu", site.path)
    write = Path.write_bytes

    def fail_halfway_in_second(path: Path, content: bytes) -> int:
        write(path, content[:5])
        if "second" in path.name:
            raise OSError(f"no space left for {path}")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail_halfway_in_second)
    with pytest.raises(OSError, match="no space left"):
        commit(changes)
    assert site.files() == before


RENAME = "@@ -1,2 +1,2 @@\n LIMIT = 2\n-NAME = 'first'\n+NAME = 'third'\n"


@pytest.fixture
def three(folder: Folder, two: Series) -> Series:
    """A patch of each module, and one that changes the first further."""
    assert len(two.patches) == 2
    folder.add("patch-third", "first", RENAME, "Needs: patch-first\n")
    return folder.load()


def test_a_second_patch_of_a_file_takes_it_as_the_first_left_it(site: Site, three: Series) -> None:
    changes = plan([three], "cpu", site.path)
    commit(changes)
    assert site.file("first").read_text() == "LIMIT = 2\nNAME = 'third'\n"
    assert [change.patches for change in changes] == [("patch-first", "patch-third"), ("patch-second",)]
    assert all(change.applied for change in plan([three], "cpu", site.path))


def test_a_file_with_some_of_its_patches_is_unknown(site: Site, three: Series) -> None:
    """Neither as released nor with the whole series: nobody knows what else is in it."""
    site.file("first").write_text("LIMIT = 2\nNAME = 'first'\n")
    with pytest.raises(RefusedError, match="with sha256"):
        applied(site, three)


@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [("patch-first", "it stands 0 times in"), ("patch-third", "would become")],
)
def test_some_patches_of_a_file_alone_are_refused(
    site: Site, three: Series, left_out: str, sentence: str
) -> None:
    with pytest.raises(RefusedError, match=sentence):
        applied(site, three.only(lambda patch: patch.id != left_out))


def test_what_needs_a_patch_is_left_out_with_it(three: Series) -> None:
    assert [patch.id for patch in three.without("patch-first").patches] == ["patch-second"]
    assert [patch.id for patch in three.without("patch-third").patches] == ["patch-first", "patch-second"]


def test_all_files_of_a_series_are_written_or_none(site: Site, three: Series) -> None:
    before = site.files()
    site.file("second").write_text("# unknown\n")
    with pytest.raises(RefusedError, match=r"Patch patch-second expects thing/second\.py of thing 1\.0"):
        applied(site, three)
    assert site.file("first").read_text() == before["thing/first.py"]


@pytest.fixture
def adding(folder: Folder) -> Series:
    folder.add_file("added", "ADDED = True\n")
    folder.add("patch-added", "first", "", "X-Kvshare-Adds: thing/added.py\n")
    return folder.load()


def test_a_file_is_added_and_taken_back_with_the_rest(
    site: Site, adding: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = site.files()
    changes = plan([adding], "cpu", site.path)
    with monkeypatch.context() as patched:
        patched.setattr(apply, "_compile", lambda _path: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            commit(changes)
    assert site.files() == before
    commit(changes)
    assert site.file("added").read_text() == "ADDED = True\n"
    assert all(change.applied for change in plan([adding], "cpu", site.path))


def test_a_file_of_someone_else_is_not_overwritten(site: Site, adding: Series) -> None:
    site.file("added").write_text("# upstream has it now\n")
    with pytest.raises(RefusedError, match=r"expects thing/added\.py .* another file is already at"):
        applied(site, adding)


def test_an_added_file_that_was_edited_without_make_patches_is_refused(
    site: Site, folder: Folder, adding: Series
) -> None:
    (folder.path / "files/thing/added.py").write_text("ADDED = False\n")
    edited = load(folder.path)
    assert edited.sums == adding.sums
    with pytest.raises(RefusedError, match="to become sha256"):
        applied(site, edited)


def test_devices_may_leave_a_file_different(site: Site, folder: Folder) -> None:
    folder.add("patch-first", "first", RAISE_LIMIT.format(name="first"))
    folder.add("patch-third", "first", RENAME)
    both = folder.path / "patch-first.patch"
    both.write_text(both.read_text().replace("Devices: cpu", "Devices: cpu, cuda"))
    series = folder.load()
    assert {name for name in series.sums if name.startswith("after")} == {
        "after-cpu/thing/first.py",
        "after-cuda/thing/first.py",
    }
    commit(plan([series], "cuda", site.path))
    assert site.file("first").read_text() == "LIMIT = 2\nNAME = 'first'\n"


# --- the command --------------------------------------------------------------------------------------------


def arguments(site: Site, folder: Folder, device: str = "cpu") -> list[str]:
    return ["--device", device, "--site", str(site.path), "--patches", str(folder.path.parent)]


def test_the_command_applies_reports_and_records(
    site: Site, folder: Folder, three: Series, capsys: pytest.CaptureFixture[str]
) -> None:
    record = site.path / "etc" / "patches.json"
    options = [*arguments(site, folder), "--record", str(record)]
    assert command.main(options) == 0
    first, second = (three.after(f"thing/{name}.py", "cpu") for name in ("first", "second"))
    assert capsys.readouterr().out.splitlines() == [
        f"patch-first: applied, thing/first.py sha256 {first}",
        f"patch-second: applied, thing/second.py sha256 {second}",
        f"patch-third: applied, thing/first.py sha256 {first}",
    ]
    first_record = json.loads(record.read_text())
    assert first_record[0] == {
        "id": "patch-first",
        "file": "thing/first.py",
        "sha256_before": hash_of(FIRST),
        "sha256_after": first,
    }
    assert command.main(options) == 0
    assert "patch-first: already applied" in capsys.readouterr().out
    assert json.loads(record.read_text()) == first_record, "a second run must record the same"


def test_only_the_patches_of_the_device_are_applied(site: Site, folder: Folder, two: Series) -> None:
    assert len(two.patches) == 2
    assert command.main(arguments(site, folder, "cuda")) == 0
    assert site.file("first").read_text() == FIRST


def test_exit_codes(
    site: Site,
    folder: Folder,
    two: Series,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(two.patches) == 2
    options = arguments(site, folder)
    site.file("first").write_text("# unknown\n")
    assert command.main(options) == 1
    error = capsys.readouterr().err
    assert error.startswith("Patch patch-first expects thing/first.py of thing 1.0 with sha256")
    assert "Traceback" not in error
    with pytest.raises(SystemExit) as usage:
        command.main(["--device", "tpu"])
    assert usage.value.code == 2
    capsys.readouterr()
    site.file("first").write_text(FIRST)
    monkeypatch.setattr(command, "commit", lambda _changes: (_ for _ in ()).throw(OSError("read-only")))
    assert command.main(options) == 3
    assert capsys.readouterr().err == "The patches were not applied: read-only.\n"


# --- files of a series that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("Subject: patch-first: a title", "Subject: a title", r"Expected 'Subject: patch-first: TITLE'"),
        ("---\n", "", "a text, '---' and a diff"),
        ("@@ -1,2 +1,2 @@", "@@ -1,3 +1,3 @@", "a hunk of 3 and 3 lines has another number of them"),
        ("+++ b/thing/first.py", "+++ b/thing/other.py", "no file begins with"),
    ],
)
def test_a_patch_that_cannot_be_read_is_named(
    folder: Folder, two: Series, old: str, new: str, sentence: str
) -> None:
    path = folder.path / f"{two.patches[0].id}.patch"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SeriesError, match=sentence) as refusal:
        load(folder.path)
    assert str(path) in str(refusal.value)


def test_a_patch_that_is_not_there_is_named(folder: Folder, two: Series) -> None:
    (folder.path / f"{two.patches[0].id}.patch").unlink()
    with pytest.raises(SeriesError, match=r"patch-first\.patch'; run `make patches`"):
        load(folder.path)


def test_every_series_of_a_folder_is_read(folder: Folder, two: Series) -> None:
    assert load_all(folder.path.parent) == (two,)
