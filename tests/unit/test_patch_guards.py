"""The guards of docker/patches, each going red, on a made-up package: no LMCache needed."""

from __future__ import annotations

import importlib.util
import json
import py_compile
import sys
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docker" / "patches"))

import apply  # noqa: E402
import guard  # noqa: E402
from guard import RefusedError, commit, plan  # noqa: E402
from patch import AddedFile, Edit, Patch, Replacement  # noqa: E402

FIRST = "LIMIT = 1\nNAME = 'first'\n"
SECOND = "LIMIT = 1\nNAME = 'second'\n"


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
    package = tmp_path / "thing"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('the guard must not import the package')\n")
    (package / "first.py").write_text(FIRST)
    (package / "second.py").write_text(SECOND)
    info = tmp_path / "thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    return Site(tmp_path)


def make_patch(name: str, before: str, old: str = "LIMIT = 1", new: str = "LIMIT = 2") -> Patch:
    return Patch(
        id=f"patch-{name}",
        devices=frozenset({"cpu"}),
        distribution="thing",
        version="1.0",
        module=f"thing.{name}",
        sha256_before=sha256(before.encode()).hexdigest(),
        sha256_after=sha256(before.replace(old, new).encode()).hexdigest(),
        replacements=(Replacement(old, new, "why"),),
        title="",
        reason="",
        upstream="",
        probe="",
        drop_when="",
    )


PATCHES = (make_patch("first", FIRST), make_patch("second", SECOND))


def test_a_known_file_is_patched_and_compiled(site: Site) -> None:
    commit(plan(PATCHES, site.path))
    assert site.file("first").read_text() == "LIMIT = 2\nNAME = 'first'\n"
    assert site.file("second").read_text() == "LIMIT = 2\nNAME = 'second'\n"
    assert Path(importlib.util.cache_from_source(str(site.file("first")))).is_file()


def test_old_bytecode_does_not_outlive_its_source(site: Site) -> None:
    target = site.file("first")
    py_compile.compile(str(target), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    commit(plan(PATCHES, site.path))
    spec = importlib.util.spec_from_file_location("first", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.LIMIT == 2


def test_the_mode_of_a_file_is_kept(site: Site) -> None:
    site.file("first").chmod(0o640)
    commit(plan(PATCHES, site.path))
    assert site.file("first").stat().st_mode & 0o777 == 0o640


def test_a_second_run_changes_nothing(site: Site) -> None:
    commit(plan(PATCHES, site.path))
    written = site.file("first").stat().st_mtime_ns
    again = plan(PATCHES, site.path)
    assert [change.applied for change in again] == [True, True]
    commit(again)
    assert site.file("first").stat().st_mtime_ns == written


def test_an_unknown_file_is_refused(site: Site) -> None:
    site.file("second").write_text(SECOND + "# moved on\n")
    before = site.files()
    with pytest.raises(RefusedError) as refusal:
        commit(plan(PATCHES, site.path))
    found = sha256((SECOND + "# moved on\n").encode()).hexdigest()
    assert str(refusal.value) == (
        f"Patch patch-second expects thing.second of thing 1.0 with sha256 {PATCHES[1].sha256_before}, "
        f"but {site.file('second')} has {found}; reinstall that release, or adapt the patch to this file."
    )
    assert site.files() == before, "the patch of the first file was written although the second was refused"


def test_another_version_is_refused_even_with_the_same_file(site: Site) -> None:
    (site.path / "thing-1.0.dist-info").rename(site.path / "thing-1.1.dist-info")
    metadata = site.path / "thing-1.1.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    with pytest.raises(RefusedError) as refusal:
        plan(PATCHES, site.path)
    assert str(refusal.value) == (
        "Patch patch-first expects thing.first of thing 1.0, but 1.1 of thing is installed in "
        f"{site.path}; adapt the patch to this release or pin the old one."
    )


def test_a_package_without_metadata_is_refused(site: Site) -> None:
    (site.path / "thing-1.0.dist-info" / "METADATA").unlink()
    (site.path / "thing-1.0.dist-info").rmdir()
    with pytest.raises(RefusedError, match="but no version of thing is installed"):
        plan(PATCHES, site.path)


def test_a_missing_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"expects thing\.first of thing 1\.0, but no package thing is in"):
        plan(PATCHES, tmp_path)


def test_a_missing_module_is_refused(site: Site) -> None:
    site.file("first").unlink()
    with pytest.raises(RefusedError, match=r"but there is no .*first\.py; adapt the patch"):
        plan(PATCHES, site.path)


@pytest.mark.parametrize(("text", "times"), [("LIMIT = 1\nLIMIT = 1\n", 2), ("NAME = 'first'\n", 0)])
def test_text_that_is_not_there_exactly_once_is_refused(site: Site, text: str, times: int) -> None:
    site.file("first").write_text(text)
    patch = replace(make_patch("first", text), sha256_after="0" * 64)
    with pytest.raises(RefusedError, match=f"exactly once, but it stands {times} times in"):
        plan([patch], site.path)


def test_a_result_that_does_not_compile_is_refused(site: Site) -> None:
    with pytest.raises(RefusedError, match=r"does not compile .*correct the patch"):
        plan([make_patch("first", FIRST, new="LIMIT = (")], site.path)


def test_a_result_with_another_hash_is_refused(site: Site) -> None:
    with pytest.raises(RefusedError, match=rf"to become sha256 {'0' * 64}, but .* would become"):
        plan([replace(PATCHES[0], sha256_after="0" * 64)], site.path)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_between_two_writes_takes_the_first_back(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = site.files()
    changes = plan(PATCHES, site.path)

    def fail_on_second(path: Path) -> None:
        if path == site.file("second"):
            raise error

    monkeypatch.setattr(guard, "_compile", fail_on_second)
    with pytest.raises(type(error)):
        commit(changes)
    assert site.files() == before


def test_a_full_disk_leaves_everything_as_it_was(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    before = site.files()
    changes = plan(PATCHES, site.path)
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


THIRD = make_patch("first", "LIMIT = 2\nNAME = 'first'\n", "'first'", "'third'")


def test_a_second_patch_of_a_file_takes_it_as_the_first_left_it(site: Site) -> None:
    changes = plan([*PATCHES, THIRD], site.path)
    commit(changes)
    assert site.file("first").read_text() == "LIMIT = 2\nNAME = 'third'\n"
    assert [change.sha256_after for change in changes] == [patch.sha256_after for patch in (*PATCHES, THIRD)]
    assert all(change.applied for change in plan([*PATCHES, THIRD], site.path))


def test_a_patch_is_added_to_a_patched_file(site: Site) -> None:
    commit(plan(PATCHES, site.path))
    changes = plan([*PATCHES, THIRD], site.path)
    assert [change.applied for change in changes] == [True, True, False]
    commit(changes)
    assert site.file("first").read_text() == "LIMIT = 2\nNAME = 'third'\n"


def test_a_second_patch_without_the_first_is_refused(site: Site) -> None:
    with pytest.raises(RefusedError, match="with sha256"):
        plan([THIRD], site.path)


def test_all_files_of_a_patch_are_written_or_none(site: Site) -> None:
    second = PATCHES[1]
    both = replace(
        PATCHES[0],
        more=(Edit(second.module, second.sha256_before, second.sha256_after, second.replacements),),
    )
    before = site.files()
    site.file("second").write_text("# unknown\n")
    with pytest.raises(RefusedError, match=r"Patch patch-first expects thing\.second of thing 1\.0"):
        plan([both], site.path)
    site.file("second").write_text(before["thing/second.py"])
    commit(plan([both], site.path))
    assert "LIMIT = 2" in site.file("first").read_text()
    assert "LIMIT = 2" in site.file("second").read_text()


def adding_patch() -> Patch:
    return replace(PATCHES[0], added=(AddedFile(source="patch.py", module="thing.added"),))


def test_a_file_is_added_and_taken_back_with_the_rest(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    before = site.files()
    changes = plan([adding_patch()], site.path)
    with monkeypatch.context() as patched:
        patched.setattr(guard, "_compile", lambda _path: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            commit(changes)
    assert site.files() == before
    commit(changes)
    assert site.file("added").read_bytes() == (ROOT / "docker/patches/patch.py").read_bytes()
    assert all(change.applied for change in plan([adding_patch()], site.path))


def test_a_file_of_someone_else_is_not_overwritten(site: Site) -> None:
    site.file("added").write_text("# upstream has it now\n")
    with pytest.raises(RefusedError, match=r"adds thing\.added, but another file is already at"):
        plan([adding_patch()], site.path)


@pytest.fixture
def made_up_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "PATCHES", PATCHES)


@pytest.mark.usefixtures("made_up_patches")
def test_the_command_applies_reports_and_records(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    record = site.path / "etc" / "patches.json"
    arguments = ["--device", "cpu", "--site", str(site.path), "--record", str(record)]
    assert apply.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"patch-first: applied, thing/first.py sha256 {PATCHES[0].sha256_after}",
        f"patch-second: applied, thing/second.py sha256 {PATCHES[1].sha256_after}",
    ]
    first_record = json.loads(record.read_text())
    assert first_record[0] == {
        "id": "patch-first",
        "file": "thing/first.py",
        "sha256_before": PATCHES[0].sha256_before,
        "sha256_after": PATCHES[0].sha256_after,
    }
    assert apply.main(arguments) == 0
    assert "patch-first: already applied" in capsys.readouterr().out
    assert json.loads(record.read_text()) == first_record, "a second run must record the same"


@pytest.mark.usefixtures("made_up_patches")
def test_only_the_patches_of_the_device_are_applied(site: Site) -> None:
    assert apply.main(["--device", "cuda", "--site", str(site.path)]) == 0
    assert site.file("first").read_text() == FIRST


@pytest.mark.usefixtures("made_up_patches")
def test_exit_codes(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    site.file("first").write_text("# unknown\n")
    assert apply.main(["--device", "cpu", "--site", str(site.path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Patch patch-first expects thing.first of thing 1.0 with sha256")
    assert "Traceback" not in error
    with pytest.raises(SystemExit) as usage:
        apply.main(["--device", "tpu"])
    assert usage.value.code == 2
    capsys.readouterr()
    site.file("first").write_text(FIRST)
    monkeypatch.setattr(apply, "commit", lambda _changes: (_ for _ in ()).throw(OSError("read-only")))
    assert apply.main(["--device", "cpu", "--site", str(site.path)]) == 3
    assert capsys.readouterr().err == "The patches were not applied: read-only.\n"


def test_the_documentation_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert apply.main(["--docs"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "patches.md").read_text(), (
        "run: python docker/patches/apply.py --docs > docs/patches.md"
    )


@pytest.mark.parametrize("patch", apply.PATCHES, ids=lambda patch: str(patch.id))
def test_each_patch_says_why_and_when_to_drop_it(patch: Patch) -> None:
    assert patch.devices <= set(apply.DEVICES)
    assert patch.devices
    said = (patch.title, patch.reason, patch.upstream, patch.probe, patch.drop_when)
    assert all(said)
    assert all(replacement.reason for edit in patch.edits for replacement in edit.replacements)
