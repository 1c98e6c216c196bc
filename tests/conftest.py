"""What every test folder shares."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvshare.config.settings import CONTROLLER, SHARINGS

ROOT = Path(__file__).resolve().parent.parent
CPU = {"DEVICE": "cpu", "COMPOSE_FILE": "compose.yaml:compose.cpu.yaml"}
BUILD_TIMEOUT_S = 2400


def pytest_configure() -> None:
    # A run started in the background by a shell has Ctrl-C ignored, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files instead of comparing"
    )
    parser.addoption("--long", action="store_true", help="the long form of the scenarios: hours, not minutes")
    parser.addoption(
        "--sharing", choices=SHARINGS, default=CONTROLLER, help="by what the scenarios of faults share KV"
    )
    parser.addoption(
        "--minutes", type=float, default=60, help="how long requests are drawn in the oracle's long form"
    )


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the scenarios are to take their time."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """Names of the CPU images by service, all of them built from this tree, once in a test run."""
    built = _run(sys.executable, "-m", "kvshare", "image", timeout=BUILD_TIMEOUT_S)
    assert built.returncode == 0, built.stderr[-5000:]
    config = _run("docker", "compose", "--profile", "*", "config", "--format", "json", timeout=60)
    assert config.returncode == 0, config.stderr
    return {name: service["image"] for name, service in json.loads(config.stdout)["services"].items()}


def build_stage(target: str) -> None:
    """Build a stage of the Dockerfile for its effect: a test, which is not run again where it has passed."""
    command = (
        "from kvshare.config.settings import find_root, load_settings;"
        "from kvshare.operate.build import build_target;"
        f"build_target(load_settings(find_root()), 'default', '{target}')"
    )
    built = _run(sys.executable, "-c", command, timeout=BUILD_TIMEOUT_S)
    if built.returncode != 0:
        log = ROOT / f".kvshare/{target}.log"
        pytest.fail(f"{log.read_text()[-20_000:]}\n{built.stderr[-5_000:]}", pytrace=False)


def _run(*command: str, timeout: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **CPU, "OBSERVE": "5"}  # the image of Prometheus is one of them
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))
