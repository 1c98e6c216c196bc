"""A proxy in Docker's client configuration is in each container's environment; nodes are asked without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docker/engine"))

from kvshare.servers.http import Http
from kvshare.site import base
from kvshare_engine import health
from tests.conftest import ROOT

NOBODY = "http://127.0.0.1:9"


class Node(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"a node")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A node's URL, with a proxy around that answers nobody."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, NOBODY)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Node) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_health_check_asks_the_node(node: str) -> None:
    assert health.fetch(f"{node}/health") == "a node"


def test_what_the_tool_runs_in_a_container_asks_the_node(node: str) -> None:
    fetched = subprocess.run([sys.executable, "-c", base._FETCH, node], capture_output=True, check=True)
    assert fetched.stdout == b"a node"


def test_the_gateways_health_check_asks_the_gateway(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    _, *command = services["gateway"]["healthcheck"]["test"]
    host, port = node.removeprefix("http://").split(":")
    monkeypatch.setenv("KVSHARE_GATEWAY_HOST", host)
    monkeypatch.setenv("KVSHARE_GATEWAY_PORT", port)
    subprocess.run([sys.executable, *command[1:]], check=True)


def test_the_client_asks_the_node(node: str) -> None:
    assert Http(node).get("/metrics") == "a node"
