"""Probe of registration: a worker finds a controller that starts late; a new address replaces the old."""

from __future__ import annotations

import json
import time
import urllib.error

from probes import ProbeError
from probes.controller import Ports, free_ports, get, request, running_controller
from probes.node import running_node, settings_for

AWAY_S = 6.0
REGISTERED_WITHIN_S = 15.0
SOON_S = 2.0


def probe() -> None:
    """Raises ProbeError unless the node is listed in time, and the stand-in always at its last address."""
    ports = free_ports()
    with running_node(settings_for("a", ports)) as node:
        found = node.ask("get", seed=1, chunks=3, request="no-controller")
        if found["seconds"] > SOON_S:
            raise ProbeError(f"Without a controller a miss took {found['seconds']:.1f} s.")
        time.sleep(AWAY_S)
        with running_controller(ports):
            _wait_until_registered(ports, "a")
            for kind, port, url in (
                ("RegisterMsg", ports.reply, "old:1"),
                ("RegisterMsg", ports.reply, "new:2"),
                ("HeartbeatMsg", ports.heartbeat, "newest:3"),
            ):
                _check_address(ports, kind, port, url)


def _wait_until_registered(ports: Ports, instance: str) -> None:
    deadline = time.monotonic() + REGISTERED_WITHIN_S
    while not addresses(ports, instance):
        if time.monotonic() > deadline:
            raise ProbeError(
                f"A worker should register within {REGISTERED_WITHIN_S} s of its controller's start."
            )
        time.sleep(0.2)


def _check_address(ports: Ports, kind: str, port: int, url: str) -> None:
    worker = {"instance_id": "stand-in", "worker_id": 0, "ip": "127.0.0.1", "port": 1}
    answer = request(port, {"type": kind, **worker, "peer_init_url": url})
    found = addresses(ports, "stand-in")
    if found != [url]:
        raise ProbeError(f"After a {kind} with {url} the controller lists {found}, and answered {answer}.")


def addresses(ports: Ports, instance: str) -> list[str]:
    """Where the controller would send a peer of this instance."""
    try:
        with get(ports.http, f"/controller/workers?instance_id={instance}") as answer:
            return [worker["peer_init_url"] for worker in json.load(answer)["workers"]]
    except urllib.error.HTTPError:
        return []
