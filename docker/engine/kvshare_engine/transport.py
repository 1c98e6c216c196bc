"""How KV travels between peers: what UCX must be told for a transport and a device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from kvshare_engine.environment import NIXL_DIR, refuse

# On a machine with a GPU NIXL refuses transports without CUDA memory, although only CPU memory is sent.
UCX_TLS = {
    ("tcp", "cpu"): "tcp",
    ("tcp", "cuda"): "tcp,cuda_copy",
    ("rdma", "cpu"): "rc",
    ("rdma", "cuda"): "rc,cuda_copy",
}
SYSFS_NET = Path("/sys/class/net")
MOST_LANES = 8  # so many fill 100 Gbit/s: docs/gpu.md


def environment(
    transport: str, device: str, host: str, ranks: int = 1, given: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """UCX's variables for a node at address ``host``, whose lanes its ranks share; what is ``given`` stands.

    Ends the container if one is not to be had.
    """
    if (transport, device) not in UCX_TLS:
        refuse(f"expected TRANSPORT tcp or rdma on a cpu or cuda image and found {transport} on {device}")
    network_device = device_of(host)
    devices = given.get("UCX_NET_DEVICES") or (
        network_device if transport == "tcp" else rdma_port_of(network_device)
    )
    return {
        "UCX_TLS": given.get("UCX_TLS") or UCX_TLS[transport, device],
        "UCX_NET_DEVICES": devices,
        "KVSHARE_LANES": given.get("KVSHARE_LANES") or str(max(1, lanes_of(transport, given) // ranks)),
        **of_bridges(devices),
    }


def nixl_environment(port: int) -> dict[str, str]:
    """Where NIXL's exporter, which compose.yaml chooses, keeps what it counts and answers."""
    return {"NIXL_TELEMETRY_MULTIPROC_DIR": str(NIXL_DIR), "NIXL_TELEMETRY_PROMETHEUS_PORT": str(port)}


def of_bridges(devices: str, sysfs: Path = SYSFS_NET) -> dict[str, str]:
    """What UCX must be told beside its ``devices`` where one is a bridge: it leaves them out by itself."""
    is_bridge = any((sysfs / name / "bridge").is_dir() for name in devices.split(",") if name)
    return {"UCX_TCP_BRIDGE_ENABLE": "y"} if is_bridge else {}


def lanes_of(transport: str, given: Mapping[str, str] = os.environ) -> int:
    """How many connections a pull to or from this node uses: as ``given``, or what suits its cores."""
    return int(given.get("KVSHARE_LANES") or lanes(transport, len(os.sched_getaffinity(0))))


def lanes(transport: str, cores: int) -> int:
    """How many connections a pull uses: over TCP each fills a core at both ends, the engine has the rest."""
    return max(1, min(MOST_LANES, cores // 2)) if transport == "tcp" else 1


def device_of(address: str) -> str:
    """The network device that holds ``address``.

    UCX would otherwise advertise any device, docker0 among them, whose address every Docker host shares.
    """
    held = {entry.address: device for device, entries in psutil.net_if_addrs().items() for entry in entries}
    if address.startswith("127.") and "127.0.0.1" in held:
        return held["127.0.0.1"]  # the loopback holds all of 127.0.0.0/8 and lists one
    if address not in held:
        mine = ", ".join(sorted(a for a in held if a.count(".") == 3))
        refuse(
            f"expected {address} to be an address of this machine and found {mine}; "
            "correct PREFILL_HOST or DECODE_HOST in .env"
        )
    return held[address]


def rdma_port_of(network_device: str, sysfs: Path = SYSFS_NET) -> str:
    """The RDMA device and port behind a network device, as UCX names it, e.g. ``mlx5_0:1``.

    Source: the kernel links both from one PCI device, ``/sys/class/net/<net>/device/infiniband/<rdma>``;
    a card with several network ports numbers them in ``dev_port``, from 0.
    """
    cards = sorted(path.name for path in (sysfs / network_device / "device/infiniband").glob("*"))
    if not cards:
        refuse(
            f"expected an RDMA card behind {network_device} and found none; "
            "give PREFILL_HOST and DECODE_HOST the addresses of the RDMA cards, or set TRANSPORT=tcp in .env"
        )
    ports = list((sysfs / network_device / "device/infiniband" / cards[0] / "ports").glob("*"))
    number = int((sysfs / network_device / "dev_port").read_text()) + 1 if len(ports) > 1 else 1
    return f"{cards[0]}:{number}"
