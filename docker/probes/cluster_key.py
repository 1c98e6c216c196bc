"""Probe of cluster-key: on every port of the cluster only who has its key gets through the handshake."""

from __future__ import annotations

import hmac
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from probes import ProbeError
from probes.controller import Ports, free_ports, get, running_controller
from probes.node import Node, running_node, settings_for

PROMPT = {"seed": 1, "chunks": 3}
HANDSHAKE_S = 10
OWN, ANOTHER = "5b" * 32, "6c" * 32  # keys
OVER = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def probe() -> None:
    """Raises ProbeError unless who has the key pulls and is let in, and everybody else is turned away."""
    with tempfile.TemporaryDirectory() as folder, _cluster(key_file_in(Path(folder))) as (ports, a, b):
        for port in (ports.pull, *_answering(ports, a)):
            require_key(port, zmq.PUSH if port == ports.pull else zmq.REQ)
        a.ask("store", **PROMPT)
        if not b.pull_until_hit(**PROMPT)["hits"]:
            raise ProbeError("Of two nodes with the key one should pull from the other.")
        _require_counts(ports, a)


def key_file_in(folder: Path) -> str:
    """A file that holds the cluster's own key."""
    path = folder / "own"
    path.write_text(f"{OWN}\n")
    return str(path)


def require_key(port: int, role: int) -> None:
    """Raises ProbeError unless a port lets in who has the cluster's own key, and nobody else."""
    for name, key in (("no key", ""), ("another key", ANOTHER)):
        if _lets_in(port, role, key):
            raise ProbeError(f"Who has {name} should be turned away, and is let in.")
    if not _lets_in(port, role, OWN):
        raise ProbeError("Who has the key should be let in, and is turned away.")


@contextmanager
def _cluster(key_file: str) -> Iterator[tuple[Ports, Node, Node]]:
    ports = free_ports()
    with (
        running_controller(ports, key_file),
        running_node(settings_for("a", ports, key_file=key_file)) as a,
        running_node(settings_for("b", ports, key_file=key_file)) as b,
    ):
        a.wait_until_synced(ports)
        yield ports, a, b


def _answering(ports: Ports, node: Node) -> tuple[int, ...]:
    """Ports that answer requests."""
    own = node.settings
    return ports.reply, ports.heartbeat, own.worker_port, own.init_port, own.lookup_port


def _lets_in(port: int, role: int, key: str) -> bool:
    """Whether a caller with that key, or without one, gets through the handshake."""
    context = zmq.Context()
    client = context.socket(role)
    client.setsockopt(zmq.LINGER, 0)
    try:
        if key:
            _, client.curve_serverkey = _pair(key, "listener")
            client.curve_secretkey, client.curve_publickey = _pair(key, "caller")
        events = client.get_monitor_socket(OVER)
        client.connect(f"tcp://127.0.0.1:{port}")
        if not events.poll(HANDSHAKE_S * 1000):
            raise ProbeError(f"A handshake should be over within {HANDSHAKE_S} s.")
        return bool(recv_monitor_message(events)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED)
    finally:
        context.destroy(linger=0)


def _pair(key: str, of: str) -> tuple[bytes, bytes]:
    """Secret and public key of a role, as every node derives them."""
    secret = z85.encode(hmac.digest(bytes.fromhex(key), f"kvshare {of}".encode(), "sha256"))
    return secret, zmq.curve_public(secret)


def _require_counts(ports: Ports, node: Node) -> None:
    counted = node.ask("rejected")
    for port in (node.settings.worker_port, node.settings.init_port, node.settings.lookup_port):
        if counted.get(f"port {port}", 0) < 2:
            raise ProbeError(f"Both who were turned away should be counted: {counted}.")
    with get(ports.http, "/metrics", node.settings.key_file) as answer:
        metrics = answer.read().decode()
    if f'socket="port {ports.pull}"' not in metrics:
        raise ProbeError("The controller should count who was turned away.")
