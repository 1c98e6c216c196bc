"""Secrets on a real engine: read by the server's user, without root or capabilities, and shown nowhere."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import CPU, ROOT

TOKEN, KEY = "hf_not_a_real_token", "sk-not-a-real-key"
GIVEN = {"HF_TOKEN": TOKEN, "VLLM_API_KEY": KEY}
# What the entrypoint finds, as whom, and with which capabilities.
LOOK = (
    "import os; from kvshare_engine import server;"
    "caps = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('CapEff'));"
    "print(os.getuid(), caps, sorted(server.secrets().items()))"
)
NO_CAPABILITIES = "0000000000000000"

pytestmark = [pytest.mark.usefixtures("images", "own_project"), pytest.mark.timeout(2400)]


def compose(*arguments: str, **secrets: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in GIVEN}
    command = [
        "docker",
        "compose",
        "--env-file",
        "/dev/null",
        "--project-name",
        "kvshare-secrets",
        *arguments,
    ]
    result = subprocess.run(
        command, cwd=ROOT, env={**environment, **CPU, **secrets}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def own_project() -> Iterator[None]:
    """Nothing of the project that these tests make is left."""
    yield
    compose("--profile", "*", "down", "--volumes")


def look(service: str, **secrets: str) -> str:
    arguments = ("--rm", "--no-deps", "--no-TTY", "--entrypoint", "python", service, "-c", LOOK)
    return compose("run", *arguments, **secrets)


@pytest.mark.parametrize("service", ["prefill", "decode"])
def test_a_server_reads_its_secrets_without_root(service: str) -> None:
    assert look(service, **GIVEN) == f"2000 {NO_CAPABILITIES} {sorted(GIVEN.items())}"


@pytest.mark.parametrize("secrets", [{}, dict.fromkeys(GIVEN, "")], ids=["unset", "empty"])
def test_a_server_starts_without_secrets(secrets: dict[str, str]) -> None:
    assert look("decode", **secrets) == f"2000 {NO_CAPABILITIES} []"


def test_the_controller_has_none() -> None:
    assert look("controller", **GIVEN).endswith(" []")


def test_no_secret_is_shown_by_docker_inspect() -> None:
    arguments = ("--detach", "--no-deps", "--entrypoint", "sleep", "prefill", "60")
    container = compose("run", *arguments, **GIVEN).splitlines()[-1]
    try:
        shown = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True)
        assert "hf_token" in shown.stdout or "kvshare" in shown.stdout
        assert TOKEN not in shown.stdout
        assert KEY not in shown.stdout
    finally:
        subprocess.run(["docker", "rm", "--force", container], capture_output=True, check=True)
