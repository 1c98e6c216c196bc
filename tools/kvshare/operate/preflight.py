"""What would stop a start, found before anything is started. No impact."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from kvshare.site import contexts
from kvshare.stack.members import Controller, Member, Stack
from kvshare.stack.ports import ports_of

GIB = 1024**3
ANY_ADDRESS = ("0.0.0.0", "::")
# Resident memory in GiB, a little above what was seen on the CPU; LMCache memory of a server comes on top.
CONTROLLER_GIB = 0.5
CPU_SERVER_GIB = 2.5
# Room for the CPU images while they are built (GiB), and for logs and models once they are.
BUILD_DISK_GIB = 12
RUN_DISK_GIB = 2


def check_all(settings: Settings, stack: Stack, members: Sequence[Member]) -> None:
    """Every check that concerns the members about to start; another machine is left to itself."""
    check_model(settings)
    check_max_model_len(settings)
    here = [member for member in members if contexts.resolve(member.context).is_local]
    if here:
        check_ports(here)
        check_memory(settings, stack, here)
        check_disk(docker_root(here[0].context), RUN_DISK_GIB)


def check_ports(members: Iterable[Member]) -> None:
    """KvshareError names the first port that something else on this machine already listens on, and what.

    A member whose address this machine does not hold runs on an engine with a network of its own.
    """
    listening = _listening()
    mine = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    for member in members:
        for port in ports_of(member) if member.host in mine else ():
            taken_by = next(
                (by for (address, number), by in listening.items()
                 if number == port.number and address in (member.host, *ANY_ADDRESS)), None,
            )  # fmt: skip
            if taken_by is not None:
                raise KvshareError(
                    f"port {port.number} ({port.purpose}) is taken by {taken_by}: "
                    "stop that, or change the port in x-kvshare of compose.yaml."
                )


def check_memory(settings: Settings, stack: Stack, members: Iterable[Member]) -> None:
    """KvshareError says how many GiB the members need and how many there are.

    Of a GPU server only LMCache's memory is counted: what else it needs is its model's, not known here.
    """
    if stack.device == "cpu":
        server_gib = float(settings.get("CPU_CACHE_GIB", "0.5")) + CPU_SERVER_GIB
    else:
        server_gib = float(lmcache_settings(settings.root)["max_local_cpu_size"])
    need = sum(CONTROLLER_GIB if isinstance(member, Controller) else server_gib for member in members)
    have = psutil.virtual_memory().available / GIB
    if have < need:
        raise KvshareError(
            f"not enough memory: need {need:.1f} GiB, have {have:.1f} GiB available; "
            "stop something, or lower CPU_CACHE_GIB in .env."
        )


def check_disk(docker_root: Path, need_gib: float) -> None:
    """KvshareError says how many GiB are needed where Docker keeps its data, and how many are free."""
    have = shutil.disk_usage(docker_root if docker_root.exists() else "/").free / GIB
    if have < need_gib:
        raise KvshareError(
            f"not enough disk in {docker_root}: need {need_gib} GiB, have {have:.1f} GiB free; "
            "free some, e.g. with docker system prune."
        )


def check_model(settings: Settings) -> None:
    """KvshareError if MODEL is a path that is not there; elsewhere, the server itself checks it."""
    model, models = settings.get("MODEL"), settings.get("MODELS", "models")
    if not model.startswith("/"):
        return
    if not model.startswith("/models/"):
        raise KvshareError(
            f"MODEL={model} is outside /models, where the servers look: "
            "set MODELS to the folder it is in and MODEL to /models/NAME."
        )
    folder = Path(models) / model.removeprefix("/models/")
    if models.startswith("/") and not (folder / "config.json").is_file():
        raise KvshareError(
            f"MODEL={model} should be at {folder}, which has no config.json: correct MODEL or MODELS."
        )


def check_max_model_len(settings: Settings) -> None:
    """KvshareError unless MAX_MODEL_LEN is a number that holds at least one chunk."""
    value, chunk_size = settings.get("MAX_MODEL_LEN", "1600"), lmcache_settings(settings.root)["chunk_size"]
    if not value.isdigit() or int(value) <= chunk_size:
        raise KvshareError(
            f"MAX_MODEL_LEN={value} must be a number above the chunk size, {chunk_size} tokens."
        )


def lmcache_settings(root: Path) -> Mapping[str, Any]:
    """The LMCache settings that all nodes share, as configs/lmcache.yaml has them."""
    settings: Mapping[str, Any] = yaml.safe_load((root / "configs/lmcache.yaml").read_text())
    return settings


def docker_root(context: str) -> Path:
    """Where the engine of a context keeps its data, on its own machine."""
    command = ["docker", "--context", context, "info", "--format", "{{json .DockerRootDir}}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return Path(json.loads(result.stdout)) if result.returncode == 0 else Path("/")


def _listening() -> Mapping[tuple[str, int], str]:
    """Every TCP address and port listened on here, with its process's name and pid where we may know it."""
    found = {}
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr:
            found[connection.laddr.ip, connection.laddr.port] = _process(connection.pid)
    return found


def _process(pid: int | None) -> str:
    if pid is None:
        return "another user's process" if os.geteuid() else "a process in another namespace"
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"
