"""Real engines whose containers are not on the machine's network: doctor names each before any start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvshare.servers.wait import poll
from tests.conftest import CPU

USER = "kvshare-apart"
CONTEXT = "kvshare-apart"
START_S, STOP_S, DOCTOR_S = 30.0, 30.0, 60.0
# Without a bridge an engine takes away the one that it finds, so it finds none.
OF_ITS_OWN = ("unshare", "--net")
ALONE = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs")
ROOTLESS = "/usr/share/docker.io/contrib/dockerd-rootless.sh"
# Its network is of no matter here, and this way it needs no tunnel device.
ON_HOST = {"DOCKERD_ROOTLESS_ROOTLESSKIT_NET": "host", "DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER": "none"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: a socket's path must be."""
    path = Path(tempfile.mkdtemp(prefix="apart-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def user(folder: Path) -> Iterator[str]:
    """One who has ids to give to containers."""
    home = folder / "home"
    subprocess.run(["useradd", "--create-home", f"--home-dir={home}", USER], check=True, timeout=START_S)
    yield USER
    subprocess.run(["userdel", USER], check=True, timeout=START_S)


@contextmanager
def running(socket: Path, command: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    """An engine behind a context of its own, stopped and forgotten on leaving."""
    with socket.with_name("log").open("wb") as log:
        engine = subprocess.Popen(
            [*OF_ITS_OWN, *command],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    host = f"unix://{socket}"
    try:
        asked = ["docker", "--host", host, "info"]
        assert poll(lambda: subprocess.run(asked, capture_output=True).returncode == 0, bool, START_S), Path(
            log.name
        ).read_text()
        subprocess.run(["docker", "context", "create", CONTEXT, f"--docker=host={host}"], check=True)
        yield
    finally:
        subprocess.run(["docker", "context", "rm", "--force", CONTEXT], check=False)
        engine.send_signal(signal.SIGTERM)
        engine.wait(STOP_S)


def doctor() -> str:
    """What doctor says of that context's engine."""
    command = (sys.executable, "-m", "kvshare", "doctor", "--only", "DOC-ENG-05", "--output", "short")
    on = {"PREFILL_CONTEXT": CONTEXT, "DECODE_CONTEXT": CONTEXT}
    said = subprocess.run(
        command, env={**os.environ, **CPU, **on}, capture_output=True, text=True, timeout=DOCTOR_S
    )
    assert said.returncode == 1, said.stderr
    return said.stdout


def test_an_engine_that_remaps_users_is_named(folder: Path, user: str) -> None:
    own = (f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid")
    socket = folder / "docker.sock"
    command = ("dockerd", f"--userns-remap={user}", f"--host=unix://{socket}", *own, *ALONE)
    with running(socket, command, {}):
        assert f"context {CONTEXT}: its engine runs containers as other users (userns-remap)" in doctor()


def test_a_rootless_engine_is_named(folder: Path, user: str) -> None:
    own = folder / "own"
    own.mkdir()
    shutil.chown(own, user, user)
    (own / "log").touch()
    socket = own / "docker.sock"
    as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
    command = (*as_user, ROOTLESS, f"--data-root={own}/data", f"--host=unix://{socket}", *ALONE)
    with running(socket, command, {**ON_HOST, "XDG_RUNTIME_DIR": str(own), "HOME": str(own)}):
        assert f"context {CONTEXT}: its engine is rootless, with a network of its own" in doctor()
