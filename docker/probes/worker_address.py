"""Probe of worker-address: a node answers at its own address alone, and the controller knows that one."""

from __future__ import annotations

import json
import socket
import time
from functools import partial

from probes import ProbeError, happens
from probes.controller import Ports, free_ports, get, running_controller
from probes.node import Settings, running_node, settings_for

OWN, OTHER = "127.0.0.2", "127.0.0.1"
REGISTERED_WITHIN_S = 15.0
DIAL_TIMEOUT_S = 10.0


def probe() -> None:
    """Raises ProbeError unless a node at 127.0.0.2 is registered there and cannot be reached at 127.0.0.1."""
    ports = free_ports()
    settings = settings_for("a", ports, host=OWN)
    with running_controller(ports), running_node(settings):
        registered = _registered_address(ports)
        if registered != OWN:
            raise ProbeError(f"A worker at {OWN} should register with that address, not with {registered}.")
        _check_doors(settings)


def _check_doors(settings: Settings) -> None:
    for name in ("worker_port", "init_port", "lookup_port"):
        port = getattr(settings, name)
        if not happens(partial(_answers, OWN, port)):
            raise ProbeError(f"The {name} of a node at {OWN} should answer there.")
        if _answers(OTHER, port):
            raise ProbeError(f"The {name} of a node at {OWN} should not answer at {OTHER}.")


def _registered_address(ports: Ports) -> str:
    deadline = time.monotonic() + REGISTERED_WITHIN_S
    while time.monotonic() < deadline:
        with get(ports.http, "/controller/workers") as answer:
            workers = json.load(answer)["workers"]
        if workers:
            return str(workers[0]["ip"])
        time.sleep(0.2)
    raise ProbeError(f"A worker should register within {REGISTERED_WITHIN_S} s.")


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), DIAL_TIMEOUT_S).close()
    except OSError:
        return False
    return True
