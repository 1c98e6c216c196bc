"""The files that patches change, with some of the patches, whichever are installed here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from guard.hunks import Hunk, unpatched
from guard.series import Series, digest, find, load_all

DOCKER = Path(__file__).parents[2] / "docker"
PROBE_TIMEOUT_S = 600
EVERY = {series.distribution: series for series in load_all()}
INSTALLED = {name: series.of("cpu") for name, series in EVERY.items()}
LMCACHE = INSTALLED["lmcache"]
PATCHES = [patch for series in INSTALLED.values() for patch in series.patches]

# Contents by path in site-packages; None where a file that is installed shall not be.
Files = Mapping[str, str | None]
Probe = Callable[[str, Files], "subprocess.CompletedProcess[str]"]


def patched_files(series: Series = LMCACHE) -> dict[str, str | None]:
    """Every file that patches of its distribution change on a CPU, with those of ``series`` alone."""
    there = {path: original(path, series.distribution) for path in INSTALLED[series.distribution].files}
    return there | {path: series.applied(path, _bytes(there[path])).decode() for path in series.files}


def without(*ids: str) -> dict[str, str | None]:
    """The files of a distribution with all its patches but these, and those that need them."""
    return patched_files(series_of(ids[0]).without(*ids))


def without_hunks(patch_id: str, is_left_out: Callable[[Hunk], bool]) -> dict[str, str | None]:
    """The same files with all patches, but for some hunks of one, and for the patches that need it."""
    series = series_of(patch_id)
    whole = find([series], patch_id)
    hunks = {path: tuple(h for h in found if not is_left_out(h)) for path, found in whole.hunks.items()}
    assert hunks != whole.hunks
    others = series.without(patch_id).patches
    chosen = [patch for patch in series.patches if patch is whole or patch in others]
    part = [replace(patch, hunks=hunks) if patch is whole else patch for patch in chosen]
    return patched_files(replace(series, patches=tuple(part)))


def series_of(patch_id: str) -> Series:
    """The series of a CPU that has the patch. Raises StopIteration."""
    return next(one for one in INSTALLED.values() if patch_id in {patch.id for patch in one.patches})


@cache
def original(path: str, distribution: str = "lmcache") -> str | None:
    """The file as upstream releases it, taken back from the patched one; None for one that a patch adds."""
    series = EVERY[distribution]
    released = series.before(path)
    if released is None:
        return None
    content = installed(path).read_text()
    if digest(content.encode()) != released:
        for one in reversed(series.patches):
            content = unpatched(content, one.hunks.get(path, ()))
    assert digest(content.encode()) == released
    return content


def installed(path: str) -> Path:
    return _package(path).parent / path


def run_probe(patch_id: str, files: Files, site: Path) -> subprocess.CompletedProcess[str]:
    """Run a patch's probe on a copy, made in ``site``, of the installed package with these files in it."""
    package = _package(next(iter(files)))
    # Links are enough: few files differ. To compile the others anew would take longer than most probes.
    shutil.copytree(package, site / package.name, copy_function=os.symlink)
    # A wheel's own shared libraries, which its extensions look for beside the package.
    for libraries in package.parent.glob(f"*{package.name}.*libs"):
        (site / libraries.name).symlink_to(libraries)
    for name, text in files.items():
        _replace(site / name, text)
    return subprocess.run(
        [sys.executable, "-m", "probes", "--device", "cpu", "--only", patch_id],
        cwd=DOCKER,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(site), os.getenv("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )


def _replace(file: Path, text: str | None) -> None:
    """Put another content into a file, and away with the bytecode of the old one."""
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()
    file.unlink(missing_ok=True)
    if text is not None:
        file.write_text(text)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _package(path: str) -> Path:
    """The folder of the package that a path in site-packages belongs to."""
    spec = importlib.util.find_spec(path.partition("/")[0])
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])
