"""Probe of mp-http-key: who has not the cluster's key asks coordinator and cache servers for health alone."""

from __future__ import annotations

import tempfile
import urllib.error
from pathlib import Path

from probes import ProbeError, happens
from probes.cluster_key import ANOTHER, key_file_in
from probes.controller import free_ports, get
from probes.mp_cluster import ask, running_coordinator, running_server

OF_COORDINATOR = ("/instances", "/metrics", "/docs", "/openapi.json", "/healthz/")
OF_SERVER = ("/status", "/metrics", "/config", "/env", "/docs", "/healthcheck/")
UNAUTHORIZED = 401
FOUND_S = 120.0


def probe() -> None:
    """Raises ProbeError unless who has not the key gets 401, and servers that have it find one another."""
    ports = free_ports()
    with tempfile.TemporaryDirectory() as folder:
        own, another = key_file_in(Path(folder)), str(Path(folder) / "another")
        Path(another).write_text(ANOTHER)
        with (
            running_coordinator(ports.http, own),
            running_server(ports.pull, ports.http, own),
            running_server(ports.reply, ports.http, own),
        ):
            asked = [(ports.http, path) for path in OF_COORDINATOR]
            asked += [(ports.pull, path) for path in OF_SERVER]
            served = [
                path
                for port, path in asked
                for key in ("", another)
                if _status(port, path, key) != UNAUTHORIZED
            ]
            if served:
                raise ProbeError(f"Who has not the key should get {UNAUTHORIZED}, but is served {served}.")
            if not happens(lambda: _peers(ports.pull, own) == _peers(ports.reply, own) == 1, FOUND_S):
                raise ProbeError("Cache servers that have the key should find one another.")


def _peers(port: int, key_file: str) -> int:
    return int(ask(port, "/status", key_file)["p2p_peer_count"])


def _status(port: int, path: str, key_file: str) -> int:
    try:
        with get(port, path, key_file) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
