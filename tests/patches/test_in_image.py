"""Where LMCache is not installed, these tests run inside the CPU engine's image, built from this tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD_TIMEOUT_S = 2400
TESTS_TIMEOUT_S = 1200


def run(*command: str, timeout: float) -> str:
    """Standard output of a command in the repository's root, for the CPU; its failure is the test's."""
    environment = {**os.environ, "DEVICE": "cpu", "COMPOSE_FILE": "compose.yaml:compose.cpu.yaml"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
    if result.returncode != 0:
        pytest.fail(
            f"{' '.join(command)}\n{result.stdout[-20_000:]}\n{result.stderr[-5_000:]}", pytrace=False
        )
    return result.stdout


def test_inside_the_image() -> None:
    run(sys.executable, "-m", "kvshare", "image", timeout=BUILD_TIMEOUT_S)
    config = run("docker", "compose", "--profile", "*", "config", "--format", "json", timeout=60)
    image = json.loads(config)["services"]["prefill"]["image"]
    mounts = (f"{ROOT}:/src:ro", f"{sysconfig.get_path('purelib')}:/pytest:ro")
    output = run(
        *("docker", "run", "--rm", "--network", "none", "--entrypoint", "python"),
        *(part for mount in mounts for part in ("--volume", mount)),
        *(image, "/src/tests/patches/run.py", "/pytest", "-p", "no:warnings"),
        timeout=TESTS_TIMEOUT_S,
    )
    summary = output.strip().splitlines()[-1]
    assert " passed" in summary
    assert "skipped" not in summary
