"""Probe of http-key: who has not the cluster's key asks the controller's HTTP for its health alone."""

from __future__ import annotations

import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from probes import ProbeError
from probes.controller import REPLY_TIMEOUT_S, Ports, free_ports, get, running_controller

ASKED = ("/", "/env", "/docs", "/openapi.json", "/metrics", "/controller/workers", "/health/", "//health")
TOLD = ("/lookup", "/move", "/pin", "/clear")
UNAUTHORIZED = 401


def probe() -> None:
    """Raises ProbeError unless who has not the key gets 401, is counted, and asks nothing but its health."""
    ports = free_ports()
    with tempfile.TemporaryDirectory() as folder:
        own, another = (str(Path(folder) / name) for name in ("own", "another"))
        for path, digit in ((own, "5"), (another, "6")):
            Path(path).write_text(digit * 64)
        with running_controller(ports, own):
            found = {(path, key): _status(ports, path, key) for path in ASKED for key in ("", another)}
            found |= {(path, ""): _told(ports, path) for path in TOLD}
            served = [path for (path, _), status in found.items() if status != UNAUTHORIZED]
            if served:
                raise ProbeError(f"Who has not the key should get {UNAUTHORIZED}, but is served {served}.")
            if _told(ports, "/health") == UNAUTHORIZED:
                raise ProbeError("Of its health the controller should answer everybody.")
            _require_served(ports, own, len(found))


def _require_served(ports: Ports, key_file: str, turned_away: int) -> None:
    refused = [path for path in ASKED[:6] if _status(ports, path, key_file) == UNAUTHORIZED]
    if refused:
        raise ProbeError(f"Who has the key should be served, and is refused {refused}.")
    counted = f'lmcache:rejected_messages_total{{socket="port {ports.http}"}} {float(turned_away)}'
    with get(ports.http, "/metrics", key_file) as answer:
        if counted not in answer.read().decode():
            raise ProbeError(f"The controller should count who was turned away: {counted}.")


def _status(ports: Ports, path: str, key_file: str) -> int:
    try:
        with get(ports.http, path, key_file) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def _told(ports: Ports, path: str) -> int:
    """The status of a POST by who has no key."""
    asked = urllib.request.Request(f"http://127.0.0.1:{ports.http}{path}", b"{}", method="POST")
    asked.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(asked, timeout=REPLY_TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
