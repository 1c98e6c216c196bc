"""The linters that `make lint` runs over imports, secrets and Compose files, each going red once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

GOLDEN = ROOT / "tests/config/golden/cuda-prefill.yaml"
COMPOSE_LINT = (str(Path(sys.executable).parent / "compose-lint"), "check", "--quiet", "--fail-on", "low")
# In parts, so that this file holds none.
SECRETS = {
    "a cloud's key": "AKIA" + "Z7QX3MNP4RLT6VWB",
    "a private key": "-----BEGIN " + "PRIVATE KEY-----",
    "a password": 'password = "' + 'correct-horse-7"',
}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_secret_is_found_and_not_shown(tmp_path: Path, secret: str) -> None:
    file = tmp_path / "settings.py"
    file.write_text(f"KEY = 1\n{secret}\n")
    result = run("tests/find-secrets.sh", str(file))
    assert result.returncode != 0
    assert f"{file}:2" in result.stdout
    assert secret not in result.stdout + result.stderr


def test_a_planted_one_and_a_marked_line_are_none(tmp_path: Path) -> None:
    file = tmp_path / "test_settings.py"
    file.write_text('password = "s3cret"\npassword = "looks-like-1"  # pragma: allowlist secret\n')
    assert run("tests/find-secrets.sh", str(file)).returncode == 0


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("    cap_drop:\n    - ALL\n", "    privileged: true\n", "CL-0002"),
        ("    security_opt:\n    - no-new-privileges:true\n", "", "CL-0003"),
        ("    - source: models\n", "    - source: /var/run/docker.sock\n", "CL-0001"),
    ],
)
def test_a_loosened_service_is_named(tmp_path: Path, old: str, new: str, rule: str) -> None:
    text = GOLDEN.read_text()
    assert old in text
    file = tmp_path / "compose.yaml"
    file.write_text(text.replace(old, new))
    result = run(*COMPOSE_LINT, "--config", str(ROOT / ".compose-lint.yml"), str(file))
    assert result.returncode == 1
    assert rule in result.stdout


def test_without_its_waiver_a_rule_is_red(tmp_path: Path) -> None:
    nothing_waived = tmp_path / "waivers.yml"
    nothing_waived.write_text("rules: {}\n")
    result = run(*COMPOSE_LINT, "--config", str(nothing_waived), str(GOLDEN))
    assert result.returncode == 1
    assert "CL-0008" in result.stdout


def test_an_import_that_goes_up_is_named(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "tools/kvshare", tmp_path / "kvshare", ignore=shutil.ignore_patterns("__pycache__")
    )
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    command.append(str(ROOT / "tools/pyproject.toml"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    honest = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert honest.returncode == 0, honest.stdout
    with (tmp_path / "kvshare/stack/members.py").open("a") as module:
        module.write("\nfrom kvshare.doctor import checks  # noqa\n")
    upward = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert upward.returncode == 1
    assert "kvshare.stack is not allowed to import kvshare.doctor" in upward.stdout
