"""The hosts' network: a namespace each, joined by a bridge that has a namespace of its own."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SWITCH = "kvshare-switch"
NAMESPACES = Path("/run/netns")
PREFIX = 24
ROOT = Path(__file__).resolve().parents[2]
STATE = Path("/run/kvshare-rig")
TICK_S, SMALLEST_BURST = 0.004, 1 << 18  # a bucket must hold what one timer tick lets through
CLONE_NEWNET = 0x40000000  # source: linux/sched.h


class RigError(Exception):
    """One sentence: what is missing or went wrong."""


@dataclass(frozen=True)
class Host:
    """One machine of the rig."""

    name: str
    address: str

    @property
    def namespace(self) -> str:
        return f"kvshare-{self.name}"

    def command(self, *command: str) -> list[str]:
        """The command as run on this host's network; all else (files, processes) is this machine's."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace}", *command]


PREFILL = Host("prefill", "192.168.110.13")
DECODE = Host("decode", "192.168.110.97")
DECODE_2 = Host("decode-2", "192.168.110.98")
DECODE_3 = Host("decode-3", "192.168.110.99")
OPERATOR = Host("operator", "192.168.110.50")  # no engine: the operator, and whoever else is on the network
HOSTS = (PREFILL, DECODE, DECODE_2, DECODE_3, OPERATOR)


def run(command: Sequence[str], timeout_s: float = 60, both: bool = False) -> str:
    """What a command prints, with ``both`` on standard error too; RigError with what it said if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if result.returncode != 0:
        said = " ".join((result.stderr or result.stdout).split())[-300:] or "no reason given"
        raise RigError(f"{' '.join(command)} failed: {said}")
    return result.stdout + result.stderr if both else result.stdout


def enter(host: Host) -> None:
    """Move the calling thread, and no other, onto a host's network; there is no way back but its end."""
    with (NAMESPACES / host.namespace).open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise RigError(f"expected to enter the network of {host.name} and could not: {reason}")


def require(*programs: str) -> None:
    """RigError names the first program that is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            raise RigError(f"expected {program} to be installed and found none: type make rig")


@contextlib.contextmanager
def claimed() -> Iterator[None]:
    """Hold the rig, of which a machine has one; RigError if another process does."""
    STATE.mkdir(parents=True, exist_ok=True)
    with (STATE / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise RigError(f"the rig is in use by process {lock.read() or 'unknown'}: wait for it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def up(hosts: Iterable[Host] = HOSTS) -> None:
    """Make the network, or what is missing of it."""
    if not (NAMESPACES / SWITCH).exists():
        run(["ip", "netns", "add", SWITCH])
        _in_switch("link", "add", "bridge", "type", "bridge")
        _in_switch("link", "set", "bridge", "up")
    for host in hosts:
        if not (NAMESPACES / host.namespace).exists():
            _add(host)


def down() -> None:
    """Remove the network; the veth pairs go with their namespaces."""
    for host in HOSTS:
        if is_shaped(host):
            unshape(host)
    for name in (*(host.namespace for host in HOSTS), SWITCH):
        if (NAMESPACES / name).exists():
            run(["ip", "netns", "delete", name])


def partition(host: Host) -> None:
    """Cut a host's cable."""
    _in_switch("link", "set", host.name, "down")


def add_address(host: Host, address: str) -> None:
    """Give a host a second address, if it has not got it."""
    run(["ip", "-n", host.namespace, "addr", "replace", f"{address}/{PREFIX}", "dev", "eth0"])


def is_cut(host: Host) -> bool:
    """Whether the host has no cable, or a cut one."""
    shown = subprocess.run(["ip", "-n", SWITCH, "link", "show", host.name], capture_output=True, text=True)
    return "state UP" not in shown.stdout


def heal(host: Host) -> None:
    """Plug the cable in again."""
    _in_switch("link", "set", host.name, "up")


@dataclass(frozen=True)
class Link:
    """What a host's cable is like, each way: bytes a second (0: no limit), seconds, share of frames lost."""

    rate: float = 0.0
    delay: float = 0.0
    loss: float = 0.0


def shape(host: Host, link: Link, seed: int = 1) -> None:
    """Make a host's cable slower, longer or lossier; connections live on."""
    unshape(host)
    near, far = f"{host.name}-n", f"{host.name}-f"
    _in_switch("link", "add", near, "type", "veth", "peer", "name", far)
    _in_switch("link", "set", far, "master", "bridge", "up")
    _in_switch("link", "set", near, "up")
    _in_switch("link", "set", host.name, "nomaster")
    command = [sys.executable, "-m", "tests.rig.slow_link", host.name, near, f"--seed={seed}"]
    command += [f"--{name}={value}" for name, value in vars(link).items()]
    STATE.mkdir(parents=True, exist_ok=True)
    with _log_of(host).open("wb") as log:
        process = subprocess.Popen(
            ["nsenter", f"--net={NAMESPACES / SWITCH}", *command],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    _pid_file(host).write_text(str(process.pid))
    time.sleep(0.5)
    if process.poll() is not None:
        unshape(host)
        raise RigError(f"the slow link of {host.name} ended: {_log_of(host).read_text().strip()[-200:]}")


def limit(host: Host, rate: float) -> None:
    """Limit a host's cable to ``rate`` bytes a second each way, in the kernel; 0 lifts the limit.

    For rates that a process could not keep pace with; delay and loss need :func:`shape`.
    """
    for namespace, device in ((host.namespace, "eth0"), (SWITCH, host.name)):
        if rate:
            burst = max(int(rate * TICK_S), SMALLEST_BURST)
            tail = ("root", "tbf", "rate", f"{int(rate * 8)}bit", "burst", str(burst), "latency", "20ms")
            run(["tc", "-n", namespace, "qdisc", "replace", "dev", device, *tail])
        else:
            subprocess.run(
                ["tc", "-n", namespace, "qdisc", "del", "dev", device, "root"], capture_output=True
            )


def is_shaped(host: Host) -> bool:
    return _pid_file(host).exists()


def unshape(host: Host) -> None:
    """Give a host's cable its full speed again."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(_pid_file(host).read_text())
        if b"slow_link" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
    _pid_file(host).unlink(missing_ok=True)
    subprocess.run(["ip", "-n", SWITCH, "link", "del", f"{host.name}-n"], capture_output=True)
    _in_switch("link", "set", host.name, "master", "bridge")


def _pid_file(host: Host) -> Path:
    return STATE / f"{host.name}.slow-link.pid"


def _log_of(host: Host) -> Path:
    return STATE / f"{host.name}.slow-link.log"


def _add(host: Host) -> None:
    run(["ip", "netns", "add", host.namespace])
    inside = ["ip", "-n", host.namespace]
    run([*inside, "link", "add", "eth0", "type", "veth", "peer", "name", host.name, "netns", SWITCH])
    _in_switch("link", "set", host.name, "master", "bridge", "up")
    run([*inside, "addr", "add", f"{host.address}/{PREFIX}", "dev", "eth0"])
    run([*inside, "link", "set", "eth0", "up"])
    run([*inside, "link", "set", "lo", "up"])
    # LMCache asks for the address of the default route.
    run([*inside, "route", "add", "default", "dev", "eth0"])


def _in_switch(*arguments: str) -> None:
    run(["ip", "-n", SWITCH, *arguments])
