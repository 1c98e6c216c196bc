"""How fast NIXL moves KV on this machine, beside UCX's own test: over loopback, and over the rig's cable.

make benchmarks ARGS="--part bandwidth"

`benchmarks/bandwidth.py` in a container of the image; both its ends, each on its host's network, are
processes of that one container, which may enter their namespaces.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import ROOT, bandwidth
from tests.rig import network
from tests.rig.network import DECODE, NAMESPACES, PREFILL

TOTAL_MIB = 512
TIMEOUT_S = 3600
SCRIPT = ("python", "/src/benchmarks/bandwidth.py", "--output", "json", "--total-mib", str(TOTAL_MIB))


def measure_bandwidth() -> dict[str, Any]:
    """Every setting over loopback, then over the cable between two hosts of the rig."""
    loopback = _in_container("lo", SCRIPT)
    with network.claimed():
        network.up()
        try:
            far = ("--far", shlex.join(DECODE.command()), "--host", DECODE.address)
            cable = _in_container("eth0", PREFILL.command(*SCRIPT, *far))
        finally:
            network.down()
    return {"loopback": loopback, "cable": cable}


def section(found: dict[str, Any]) -> list[str]:
    """Return the lines of docs/benchmarks.md."""
    return [
        "",
        "## Bandwidth",
        "",
        f"`benchmarks/bandwidth.py`: one process writes {TOTAL_MIB} MiB, in objects of 32 MiB unless it",
        "says otherwise, from its CPU memory into another's, as LMCache's channel does; `ucx_perftest` on",
        "the same transport in turn, one message an object or all in one. Both ends share the cores.",
        "",
        "Loopback:",
        "",
        bandwidth.table(found["loopback"]),
        "",
        "A cable (veth) between two network namespaces (`make rig`):",
        "",
        bandwidth.table(found["cable"]),
        "",
        "The most that a setting without more lanes comes to, in the speed of the channel as it comes:",
        f"{_gain(found['loopback']):.2f} over loopback, {_gain(found['cable']):.2f} over the cable.",
    ]


def _gain(rows: Sequence[dict[str, Any]]) -> float:
    speeds = {row["setting"]: row["gb_per_s"] for row in rows}
    single = [speed for setting, speed in speeds.items() if "lanes" not in setting]
    return float(max(single) / speeds["as it comes"])


def _in_container(device: str, command: Sequence[str]) -> Any:
    started = (
        *("docker", "run", "--rm", "--init", "--network", "host", "--user", "0"),
        *("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"),
        *("--volume", f"{ROOT}:/src:ro", *_namespaces()),
        *("--env", "PYTHONDONTWRITEBYTECODE=1", "--env", "UCX_TLS=tcp", "--env", f"UCX_NET_DEVICES={device}"),
        *("--entrypoint", command[0], f"{os.environ.get('REGISTRY') or 'kvshare'}/engine-cpu:0.1.0"),
        *command[1:],
    )
    result = subprocess.run(started, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S)
    if result.returncode != 0:
        sys.exit("The bandwidth was not measured; bandwidth.py said why above.")
    return json.loads(result.stdout)


def _namespaces() -> tuple[str, ...]:
    return ("--volume", f"{NAMESPACES}:{NAMESPACES}:ro") if NAMESPACES.exists() else ()
