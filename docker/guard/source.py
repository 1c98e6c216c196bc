"""The source distribution of what is patched, as it is locked: upstream's own tests are nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from guard.series import FOLDER, Series, digest

ROOT = FOLDER.parents[1]
LOCKS = ROOT / "docker/locks"
CACHE = ROOT / "build/upstream"


class SourceError(Exception):
    """The source distribution cannot be had; the message is one sentence."""


def fetch(series: Series, cache: Path = CACHE, locks: Path = LOCKS) -> Path | None:
    """The archive in the cache, downloaded if it is not there yet; None for a series without such a lock.

    Raises SourceError.
    """
    lock = locks / f"{series.distribution}-source.txt"
    if not lock.exists():
        return None
    if f"{series.distribution}=={series.version} " not in lock.read_text():
        raise SourceError(f"Expected {series.distribution} {series.version} in {lock}: move one of them.")
    found = _find(lock, cache)
    if found is None:
        _download(lock, cache)
        found = _find(lock, cache)
    if found is None:
        raise SourceError(
            f"Expected an archive with a hash of {lock} in {cache} and found none: remove that folder."
        )
    return found


def unpack(archive: Path, folder: Path, *names: str) -> None:
    """Put these files and folders of the archive's root into ``folder``."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            member.name = member.name.partition("/")[2]
            if member.name.partition("/")[0] in names:
                tar.extract(member, folder)


def _find(lock: Path, cache: Path) -> Path | None:
    known = lock.read_text()
    archives = sorted(cache.glob("*.tar.gz"))
    return next((path for path in archives if f"sha256:{digest(path.read_bytes())}" in known), None)


def _download(lock: Path, cache: Path) -> None:
    # pip asks a source distribution for its metadata even to download it. With the variable LMCache's answers
    # without PyTorch; the build's tools are those of docker/locks/dev.txt.
    options = ("--no-deps", "--require-hashes", "--no-binary=:all:", "--no-build-isolation", "--quiet")
    command = [sys.executable, "-m", "pip", "download", *options, f"--requirement={lock}", f"--dest={cache}"]
    if subprocess.run(command, env={**os.environ, "NO_NATIVE_EXT": "1"}, check=False).returncode:
        raise SourceError(f"The archive that {lock} names was not downloaded: see above.")
