"""setup/setup.sh refuses a machine that will not do with a sentence and exit code 2, before any impact."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Stands in for the machine: os-release and user are what the test says.
HARNESS = """
set -euo pipefail
cd {root}
source setup/say.sh
source setup/requirements.sh
source setup/install-packages.sh
os_release() {{
  case $1 in ID) echo {id} ;; PRETTY_NAME) echo "{name}" ;; VERSION_CODENAME) echo {codename} ;; esac
}}
id() {{ [ "$1" = -u ] && echo {uid} || echo someone; }}
apt-get() {{ echo "apt-get $*"; }}
add_trixie_for_docker() {{ echo "trixie added"; }}
install_packages {words}
"""

# Stands in for pip: each call is a line of what was said, and the tool is there after it.
TOOL = """
set -euo pipefail
cd {folder}
source {root}/setup/say.sh
source {root}/setup/install-tool.sh
mkdir -p .venv/bin
printf '#!/bin/sh\\necho pip "$@"; touch .venv/bin/kvshare; chmod +x .venv/bin/kvshare\\n' > .venv/bin/python
chmod +x .venv/bin/python
"""
CLIENT, DEV = "docker/locks/client.txt", "docker/locks/dev.txt"


def install(words: str, id: str, name: str = "", codename: str = "", uid: int = 0) -> tuple[int, str]:
    script = HARNESS.format(root=ROOT, words=words, id=id, name=name, codename=codename, uid=uid)
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
    return result.returncode, result.stdout + result.stderr


def test_another_distribution_is_refused() -> None:
    code, said = install("docker-engine", "fedora", "Fedora Linux 43")
    assert code == 2
    assert "expected Debian or Ubuntu to install docker-engine on, found Fedora Linux 43" in said


def test_without_root_nothing_is_installed() -> None:
    code, said = install("docker-engine docker-buildx", "debian", uid=1000)
    assert code == 2
    assert "expected root to install docker-engine docker-buildx, found user someone" in said
    assert "apt-get" not in said


def test_it_says_what_it_installs_before_it_does() -> None:
    code, said = install("docker-engine docker-compose", "ubuntu", codename="noble")
    assert code == 0
    assert "will install with apt: docker.io iptables docker-compose-v2" in said
    assert "trixie" not in said


def test_the_ssh_server_of_the_tests_does_not_become_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ssh/sshd_not_to_be_run"
    monkeypatch.setenv("SSHD_NOT_TO_BE_RUN", str(marker))
    install("nftables", "debian", codename="trixie")
    assert not marker.exists()
    code, said = install("openssh-server nftables", "debian", codename="trixie")
    assert code == 0
    assert "will keep the ssh server from starting by itself" in said
    assert marker.exists()


def test_on_debian_12_docker_comes_from_debian_13() -> None:
    code, said = install("docker-engine docker-cli", "debian", codename="bookworm")
    assert code == 0
    assert "will take Docker's packages from Debian 13" in said
    assert "trixie added" in said


@pytest.mark.parametrize(
    ("found", "minimum", "enough"),
    [
        ("2.26.1-4", "2.26.0", True),
        ("2.26.0", "2.26.0", True),
        ("1.29.2", "2.26.0", False),
        ("5.0.0", "2.26.0", True),
    ],
)
def test_versions_are_compared_as_versions(found: str, minimum: str, enough: bool) -> None:
    script = f"source {Path(ROOT) / 'setup/say.sh'}; at_least {found} {minimum}"
    assert (subprocess.run(["bash", "-c", script], timeout=30).returncode == 0) == enough


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (CLIENT, DEV, "tools/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def install_tool(tree: Path, lock: str) -> str:
    script = TOOL.format(folder=tree, root=ROOT) + f"install_tool {lock}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_tool_is_installed_once(tree: Path) -> None:
    assert f"--require-hashes -r {CLIENT}" in install_tool(tree, CLIENT)
    assert install_tool(tree, CLIENT) == ""


def test_what_the_tests_installed_is_enough_for_the_tool(tree: Path) -> None:
    install_tool(tree, DEV)
    assert install_tool(tree, CLIENT) == ""
    assert install_tool(tree, DEV) == ""


@pytest.mark.parametrize("changed", [CLIENT, "tools/pyproject.toml"])
def test_a_change_is_installed(tree: Path, changed: str) -> None:
    install_tool(tree, DEV)
    (tree / changed).write_text("changed")
    assert f"-r {CLIENT}" in install_tool(tree, CLIENT)


def test_the_tests_lock_holds_all_of_the_tools() -> None:
    client, dev = (set(re.findall(r"(?m)^\S+==\S+", (ROOT / lock).read_text())) for lock in (CLIENT, DEV))
    assert client <= dev
