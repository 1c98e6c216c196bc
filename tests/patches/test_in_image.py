"""Where LMCache is not installed, these tests run inside the CPU engine's image, built from this tree."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS_TIMEOUT_S = 3600


def test_inside_the_image(images: dict[str, str], long: bool) -> None:
    mounts = (f"{ROOT}:/src:ro", f"{sysconfig.get_path('purelib')}:/pytest:ro")
    command = (
        *("docker", "run", "--rm", "--network", "none", "--entrypoint", "python"),
        *(part for mount in mounts for part in ("--volume", mount)),
        *(images["prefill"], "/src/tests/patches/run.py", "/pytest", "-p", "no:warnings", "--durations=10"),
        # A probe mostly waits; each has up to four processes of half a GiB.
        *("--numprocesses", "4"),
        # What takes minutes, or what the image's build has shown already.
        *(() if long else ("-m", "not slow")),
    )
    result = subprocess.run(command, capture_output=True, text=True, timeout=TESTS_TIMEOUT_S)
    if result.returncode != 0:
        pytest.fail(f"{result.stdout[-20_000:]}\n{result.stderr[-5_000:]}", pytrace=False)
    print(result.stdout[-5_000:])
    summary = result.stdout.strip().splitlines()[-1]
    assert " passed" in summary
    assert "skipped" not in summary
