"""What a machine is like, seen from a container on its network, and what a server would run with on it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from kvshare.contract import Facts, Interface, Kind, Ucx
from kvshare_engine import fingerprint, hub, models, reach, server, transport
from kvshare_engine.environment import LMCACHE_CONFIG, Controller, Server

UCX_INFO_TIMEOUT_S = 15.0
SYSFS_NET = Path("/sys/class/net")
_TRANSPORT = re.compile(r"Transport:\s*(\S+)\s*\n#\s*Device:\s*(\S+)")


def gather(of: Server, controller: Controller, hub_token: str) -> Facts:
    """Everything that can be told without starting the server."""
    memory, common = psutil.virtual_memory(), fingerprint.of("controller")
    model, answer = models.find(of.model, of.model_revision, of.device, of.user_args), None
    if hub.has(of.model) and not model.found:
        answer, config = hub.ask(of.model, hub_token, of.model_revision)
        model = models.described(model, config, of.device, of.user_args)
    model = replace(model, files=models.digests(of.model, of.model_revision))
    overrides = {name: value for name, value in os.environ.items() if name.startswith("LMCACHE_") and value}
    settings = {**server.lmcache_environment(of, controller), **overrides}
    return Facts(
        hostname=socket.gethostname(),
        cpus=os.cpu_count() or 1,
        interfaces=interfaces(),
        memory_total=memory.total,
        memory_available=memory.available,
        disk_free=shutil.disk_usage("/").free,
        memlock=_memlock(),
        listening=reach.taken(),
        model=model,
        hub=answer,
        ucx=ucx(of),
        versions=common.versions,
        patches=common.patch_ids,
        python_hash_seed=common.python_hash_seed,
        dtype=of.kv_dtype,
        max_model_len=of.max_model_len or model.longest,
        lmcache=fingerprint.lmcache_settings(LMCACHE_CONFIG, settings),
    )


def interfaces(sysfs: Path = SYSFS_NET) -> tuple[Interface, ...]:
    """Every network device of this machine with its IPv4 and IPv6 addresses."""
    families = (socket.AF_INET, socket.AF_INET6)
    held = psutil.net_if_addrs()
    return tuple(
        Interface(
            name=name,
            addresses=tuple(a.address.split("%")[0] for a in held.get(name, ()) if a.family in families),
            mtu=stats.mtu,
            speed_mbit=stats.speed or None,
            up=stats.isup,
            kind=_kind(sysfs / name),
        )
        for name, stats in sorted(psutil.net_if_stats().items())
    )


def ucx(of: Server) -> Ucx:
    """What UCX would be told at this server's start, and what it finds on this machine."""
    refusal = io.StringIO()
    told: Mapping[str, str] = {}
    with contextlib.redirect_stderr(refusal), contextlib.suppress(SystemExit):
        told = transport.environment(of.transport, of.device, of.host, of.ranks)
    return Ucx(
        tls=told.get("UCX_TLS", ""),
        devices=told.get("UCX_NET_DEVICES", ""),
        found=parse_ucx_info(_ucx_info(transport.of_bridges(told.get("UCX_NET_DEVICES", "")))),
        error=refusal.getvalue().strip().removeprefix("kvshare: "),
    )


def parse_ucx_info(text: str) -> tuple[str, ...]:
    """``transport/device`` for each that ``ucx_info -d`` lists."""
    return tuple(f"{name}/{device}" for name, device in _TRANSPORT.findall(text))


def _ucx_info(told: Mapping[str, str]) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
    environment.update(told)
    try:
        result = subprocess.run(
            ["ucx_info", "-d"], capture_output=True, text=True, timeout=UCX_INFO_TIMEOUT_S, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout


def _kind(device: Path) -> Kind:
    if device.name == "lo":
        return "loopback"
    if (device / "bridge").is_dir():
        return "bridge"
    return "card" if (device / "device").exists() else "virtual"


def _memlock() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
