"""The files that patches change, before and after, whichever of the two is installed here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from guard import patched
from patch import Patch

PROBE = Path(__file__).parents[2] / "docker" / "patches" / "probe.py"
PROBE_TIMEOUT_S = 300

Probe = Callable[[str, Patch, bytes], "subprocess.CompletedProcess[str]"]


def before(patch: Patch) -> bytes:
    """The upstream file, taken back from the patched one if that is installed."""
    content = _installed_file(patch).read_bytes()
    if sha256(content).hexdigest() == patch.sha256_after:
        text = content.decode()
        for replacement in reversed(patch.replacements):
            assert text.count(replacement.new) == 1
            text = text.replace(replacement.new, replacement.old)
        content = text.encode()
    assert sha256(content).hexdigest() == patch.sha256_before
    return content


def after(patch: Patch) -> bytes:
    """The patched file."""
    return patched(patch, _installed_file(patch), before(patch))


def run_probe(name: str, patch: Patch, content: bytes, site: Path) -> subprocess.CompletedProcess[str]:
    """Run probe.py on a copy of the installed package in which the patch's file is ``content``.

    The copy is made in the folder ``site``.
    """
    package = _installed_package(patch)
    # Links are enough: only one file differs. Bytecode is left behind, it may be of other content.
    shutil.copytree(
        package, site / package.name, copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__")
    )
    # A wheel's own shared libraries, which its extensions look for beside the package.
    for libraries in package.parent.glob(f"*{package.name}.*libs"):
        (site / libraries.name).symlink_to(libraries)
    target = site / package.name / _installed_file(patch).relative_to(package)
    target.unlink()
    target.write_bytes(content)
    return subprocess.run(
        [sys.executable, "-B", str(PROBE), "--device", "cpu", "--only", name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.getenv("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )


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
