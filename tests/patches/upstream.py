"""The files that patches change, before and after, whichever of the two is installed here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from apply import PATCHES
from guard import patched, plan
from patch import Edit, Patch, Replacement

PROBE = Path(__file__).parents[2] / "docker" / "patches" / "probe.py"
PROBE_TIMEOUT_S = 600

Probe = Callable[[str, Patch, "bytes | dict[str, str]"], "subprocess.CompletedProcess[str]"]


LMCACHE = tuple(patch for patch in PATCHES if "cpu" in patch.devices and patch.distribution == "lmcache")


def patched_files() -> dict[str, str]:
    """Every file of LMCache that the CPU image patches, patched, by its path in site-packages."""
    return {change.relative: change.after.decode() for change in plan(LMCACHE)}


def without(patch: Patch, *left_out: Replacement) -> dict[str, str]:
    """The same files with all patches but this one, or but these replacements of it.

    A later patch that has changed what is left out is taken back before it.
    """
    files = patched_files()
    for later in reversed(LMCACHE[LMCACHE.index(patch) + 1 :]):
        earlier, _ = _taken_back(files, later)
        if _taken_back(earlier, patch, left_out)[1] < _taken_back(files, patch, left_out)[1]:
            files = earlier
    found, changed = _taken_back(files, patch, left_out)
    assert changed == 0
    return found


def _taken_back(
    files: dict[str, str], patch: Patch, left_out: Sequence[Replacement] = ()
) -> tuple[dict[str, str], int]:
    """The files without a patch, or without these replacements of it, and how many others had changed."""
    found, changed = dict(files), 0
    for edit in patch.edits:
        name = next(name for name in files if name in _file_names(edit.module))
        for replacement in reversed(edit.replacements):
            if left_out and replacement not in left_out:
                continue
            if found[name].count(replacement.new) == 1:
                found[name] = found[name].replace(replacement.new, replacement.old)
            else:
                changed += 1
    return found, changed


def before(patch: Patch) -> bytes:
    """The upstream file, taken back from the patched one if that is installed."""
    content = _installed_file(patch).read_bytes()
    edits = [edit for p in PATCHES for edit in p.edits if edit.module == patch.module]
    for edit in reversed(edits):
        if sha256(content).hexdigest() == edit.sha256_after:
            content = _undone(content.decode(), edit).encode()
    assert sha256(content).hexdigest() == edits[0].sha256_before
    return content


def after(patch: Patch) -> bytes:
    """The patched file, of a patch that is the first of its file."""
    return patched(patch, patch.edits[0], _installed_file(patch), before(patch))


def _undone(text: str, edit: Edit) -> str:
    for replacement in reversed(edit.replacements):
        assert text.count(replacement.new) == 1
        text = text.replace(replacement.new, replacement.old)
    return text


def _file_names(module: str) -> tuple[str, str]:
    path = module.replace(".", "/")
    return f"{path}.py", f"{path}/__init__.py"


def run_probe(
    name: str, patch: Patch, content: bytes | dict[str, str], site: Path
) -> subprocess.CompletedProcess[str]:
    """Run probe.py on a copy, made in ``site``, of the installed package with other content in it.

    ``content`` is that of the patch's first file, or of files by their path in site-packages.
    """
    package = _installed_package(patch)
    # Links are enough: few files differ. To compile the others anew would take longer than most probes.
    shutil.copytree(package, site / package.name, copy_function=os.symlink)
    # A wheel's own shared libraries, which its extensions look for beside the package.
    for libraries in package.parent.glob(f"*{package.name}.*libs"):
        (site / libraries.name).symlink_to(libraries)
    if isinstance(content, bytes):
        first = _installed_file(patch).relative_to(package.parent).as_posix()
        content = {first: content.decode()}
    for file, text in content.items():
        _replace(site / file, text)
    return subprocess.run(
        [sys.executable, str(PROBE), "--device", "cpu", "--only", name],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(site), os.getenv("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )


def _replace(file: Path, text: str) -> None:
    """Put another content into a file, and away with the bytecode of the old one."""
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()
    file.unlink(missing_ok=True)
    file.write_text(text)


def _installed_file(patch: Patch) -> Path:
    spec = importlib.util.find_spec(patch.module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _installed_package(patch: Patch) -> Path:
    spec = importlib.util.find_spec(patch.module.split(".")[0])
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])
