"""Where the patches are, and random tests that are the same every time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[2] / "docker"))

from tests.patches.upstream import Files, Probe, run_probe

# Without LMCache the only test is the one that runs the others where it is.
HAS_LMCACHE = importlib.util.find_spec("lmcache") is not None
collect_ignore_glob = ["test_in_image.py"] if HAS_LMCACHE else ["test_[!i]*.py"]

os.environ["LMCACHE_TRACK_USAGE"] = "false"
settings.register_profile("same every time", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("same every time")


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    """Run a patch's probe with other content in files of its package: see ``upstream.run_probe``."""

    def run(patch_id: str, files: Files) -> subprocess.CompletedProcess[str]:
        return run_probe(patch_id, files, tmp_path)

    return run
