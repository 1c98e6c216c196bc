"""The local Docker engine: started where no systemd does it, and stopped only if we started it."""

import os
import signal
import subprocess
import time
from pathlib import Path

from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.site.contexts import LateError, docker

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
LOG_LINES = 10


def is_up() -> bool:
    """Whether the engine of the current context answers."""
    try:
        return docker("info", limit_s=30).returncode == 0
    except LateError:
        return False


def start(root: Path) -> bool:
    """Start the engine unless it answers; return whether this call started it.

    Raises:
        KvshareError: if we may not start it.
        CouldNotCheckError: if it does not come up; its last log lines are in the sentence.
    """
    if is_up():
        return False
    if os.geteuid() != 0:
        raise KvshareError(
            "no Docker engine answers, and starting one needs root: type sudo make demo, or start it and add "
            "yourself to the docker group."
        )
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "start", "docker"], check=False)
        _wait_until_up(log=None)
        return False  # systemd's to stop, not ours
    _start_without_systemd(root)
    return True


def stop(root: Path) -> bool:
    """Stop the engine if ``start`` started it; return whether it did."""
    pid = _our_pid(root)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _our_pid(root) is not None:
        if time.monotonic() > deadline:
            raise CouldNotCheckError(f"the Docker engine (pid {pid}) did not stop in {STOP_TIMEOUT_S} s.")
        time.sleep(0.2)
    _pid_file(root).unlink(missing_ok=True)
    return True


def state_dir(root: Path) -> Path:
    """Where kvshare keeps what it must remember between commands: ``.kvshare`` under the root."""
    path = root / ".kvshare"
    path.mkdir(exist_ok=True)
    return path


def _start_without_systemd(root: Path) -> None:
    log = state_dir(root) / "dockerd.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            ["dockerd"], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    _pid_file(root).write_text(str(process.pid))
    try:
        _wait_until_up(log, process)
    except BaseException:
        stop(root)
        raise


def _wait_until_up(log: Path | None, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_up():
        if (process is not None and process.poll() is not None) or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:]) if log else ""
            raise CouldNotCheckError(
                f"the Docker engine did not come up in {START_TIMEOUT_S} s; it said:\n{tail}"
            )
        time.sleep(0.5)


def _pid_file(root: Path) -> Path:
    return state_dir(root) / "dockerd.pid"


def _our_pid(root: Path) -> int | None:
    """The pid of the engine we started, if it is still that program."""
    try:
        pid = int(_pid_file(root).read_text())
        running = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"dockerd")
        zombie = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (OSError, ValueError):
        return None
    return pid if running and not zombie else None
