"""The locked source distribution: found in the cache or downloaded, and never another one."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docker"))

from guard.series import Series, digest  # noqa: E402
from guard.source import SourceError, fetch, unpack  # noqa: E402

THING = Series("thing", "1.0", (), {})


def archive_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name in ("tests/test_it.py", "testsuite.py", "thing/__init__.py", "pytest.ini"):
            member = tarfile.TarInfo(f"thing-1.0/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    return archive_at(tmp_path / "cache/thing-1.0.tar.gz")


@pytest.fixture
def lock(tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of the archive in the cache; pip would find nothing."""
    lock = tmp_path / "locks/thing-source.txt"
    lock.parent.mkdir()
    lock.write_text(f"thing==1.0 \\\n    --hash=sha256:{digest(cached.read_bytes())}\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return lock


def test_what_is_in_the_cache_is_not_downloaded_again(lock: Path, cached: Path) -> None:
    assert fetch(THING, cached.parent, lock.parent) == cached


def test_another_archive_is_not_taken(lock: Path, cached: Path) -> None:
    cached.write_bytes(b"another")
    with pytest.raises(SourceError, match="was not downloaded: see above"):
        fetch(THING, cached.parent, lock.parent)


def test_a_lock_of_another_version_is_refused(lock: Path, cached: Path) -> None:
    lock.write_text(lock.read_text().replace("1.0", "1.1"))
    with pytest.raises(SourceError, match=r"Expected thing 1\.0 in .*thing-source\.txt"):
        fetch(THING, cached.parent, lock.parent)


def test_a_series_without_such_a_lock_has_no_archive(lock: Path, cached: Path) -> None:
    lock.unlink()
    assert fetch(THING, cached.parent, lock.parent) is None


def test_only_what_is_named_is_unpacked(cached: Path, tmp_path: Path) -> None:
    unpack(cached, tmp_path / "out", "tests", "pytest.ini")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert found == {"tests/test_it.py", "pytest.ini"}
