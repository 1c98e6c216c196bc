"""The hosts' network: a namespace each, joined by a bridge that has a namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SWITCH = "kvshare-switch"
NAMESPACES = Path("/run/netns")
PREFIX = 24


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
OPERATOR = Host("operator", "192.168.110.50")  # no engine: the operator, and whoever else is on the network
HOSTS = (PREFILL, DECODE, DECODE_2, OPERATOR)


def run(command: Sequence[str], timeout_s: float = 60) -> str:
    """Standard output of a command; RigError with what it said if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if result.returncode != 0:
        said = (result.stderr.strip() or result.stdout.strip() or "no reason given").splitlines()[-1]
        raise RigError(f"{' '.join(command)} failed: {said}")
    return result.stdout


def require(*programs: str) -> None:
    """RigError names the first program that is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            raise RigError(f"expected {program} to be installed and found none: type make test-setup")


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
    for name in (*(host.namespace for host in HOSTS), SWITCH):
        if (NAMESPACES / name).exists():
            run(["ip", "netns", "delete", name])


def partition(host: Host) -> None:
    """Cut a host's cable."""
    _in_switch("link", "set", host.name, "down")


def heal(host: Host) -> None:
    """Plug the cable in again."""
    _in_switch("link", "set", host.name, "up")


def shape(host: Host, rate: str = "", delay: str = "", loss: str = "") -> None:
    """Limit a host's link in both directions, e.g. ``rate="1gbit", delay="2500us", loss="5%"`` each way."""
    options = [part for name, value in (("rate", rate), ("delay", delay), ("loss", loss)) if value
               for part in (name, value)]  # fmt: skip
    for command in _both_ends(host):
        run(
            [*command, "replace", "dev", _device(command, host), "root", "netem", "limit", "100000", *options]
        )


def unshape(host: Host) -> None:
    """Give a host's link its full speed again."""
    for command in _both_ends(host):
        subprocess.run([*command, "del", "dev", _device(command, host), "root"], capture_output=True)


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


def _both_ends(host: Host) -> tuple[list[str], list[str]]:
    return (["tc", "-n", host.namespace, "qdisc"], ["tc", "-n", SWITCH, "qdisc"])


def _device(command: Sequence[str], host: Host) -> str:
    return "eth0" if host.namespace in command else host.name
