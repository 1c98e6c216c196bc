"""What a server computes and sends with, so that figures are compared with their like."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from kvshare.contract import Hardware, Machine, Nic
from kvshare_engine.transport import SYSFS_NET

CPUINFO = Path("/proc/cpuinfo")
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
GPU_TIMEOUT_S = 10.0


def look(ucx_device: str) -> Hardware:
    """This machine, and the network device of what UCX was told (``eth0``, ``mlx5_0:1``, or nothing)."""
    model = re.search(r"model name\s*: (.*)", _text(CPUINFO) or "")
    machine = Machine(model.group(1) if model else None, os.cpu_count(), _gpu(), os.uname().release)
    return Hardware(machine, _nic(ucx_device.split(":")[0]) if ucx_device else None)


def _nic(device: str) -> Nic:
    return Nic(device, _text(SYSFS_NET / device / "speed"), _text(SYSFS_NET / device / "mtu"))


def _gpu() -> str | None:
    try:
        result = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=GPU_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
