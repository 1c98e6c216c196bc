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
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from kvshare.contract import DEMO_MODEL, Facts, Hub, Interface, Kind, Ucx
from kvshare_engine import fingerprint, models, reach, server, transport
from kvshare_engine.environment import LMCACHE_CONFIG, Controller, Server

HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5.0
UCX_INFO_TIMEOUT_S = 15.0
SYSFS_NET = Path("/sys/class/net")
_TRANSPORT = re.compile(r"Transport:\s*(\S+)\s*\n#\s*Device:\s*(\S+)")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer; followed, it would take the token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def gather(of: Server, controller: Controller, hub_token: str) -> Facts:
    """Everything that can be told without starting the server."""
    memory, common = psutil.virtual_memory(), fingerprint.of_controller()
    model = models.find(of.model, of.model_revision, of.device)
    named = of.model != DEMO_MODEL and not of.model.startswith("/")
    wanted_from_hub = named and not model.found and os.environ.get("HF_HUB_OFFLINE") in (None, "", "0")
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
        hub=ask_hub(of.model, hub_token, of.model_revision) if wanted_from_hub else None,
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


def ask_hub(model: str, token: str, revision: str = "") -> Hub:
    """Ask the hub for the model's config.json, and take no more of it than the status."""
    address = os.environ.get("HF_ENDPOINT") or HUB
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{address}/{model}/resolve/{revision or 'main'}/config.json"
    request = urllib.request.Request(url, method="HEAD", headers=headers)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=HUB_TIMEOUT_S) as response:
            return Hub(address, bool(token), status=response.status)
    except urllib.error.HTTPError as error:
        return Hub(address, bool(token), status=error.code)
    except (OSError, ValueError) as error:
        return Hub(address, bool(token), error=str(getattr(error, "reason", error)))


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
