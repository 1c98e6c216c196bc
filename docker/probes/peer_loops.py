"""Probe of peer-loops: after bad messages on a node's three sockets, each still does its work."""

from __future__ import annotations

import msgspec
import zmq

from probes import ProbeError
from probes.controller import free_ports, request, running_controller
from probes.node import Node, running_node, settings_for
from probes.noise import bad_messages, send

PROMPT = {"seed": 1, "chunks": 3}


def probe() -> None:
    """Raises ProbeError unless, after the bad messages, a peer can pull and the worker answers."""
    ports = free_ports()
    with running_controller(ports), running_node(settings_for("a", ports)) as a:
        a.wait_until_synced(ports)
        a.ask("store", **PROMPT)
        _make_noise(a)
        # Started only now: a peer that is connected already does without the first of the sockets.
        with running_node(settings_for("b", ports)) as b:
            found = b.pull_until_hit(**PROMPT)
        if found["hits"] == 0:
            raise ProbeError("After bad messages on its P2P sockets nobody can pull from a node.")
        answer = request(a.settings.worker_port, {"type": "HealthWorkerMsg", "worker_event_id": "e"})
        if not isinstance(answer, dict):
            raise ProbeError(
                f"After bad messages on its socket a worker answers a health check with {answer}."
            )
        counted = a.ask("rejected")
        for socket in ("worker", "p2p_init", "p2p_lookup"):
            if counted[socket] < len(bad_messages()):
                raise ProbeError(f"The metric should count {len(bad_messages())} on {socket}: {counted}.")


def _make_noise(node: Node) -> None:
    requests = [[b"", message] for message in bad_messages()]
    introduction = {"type": "NixlInitRequest", "local_meta_bytes": b"no metadata"}
    for port in (node.settings.worker_port, node.settings.init_port, node.settings.lookup_port):
        send(port, zmq.DEALER, *requests, [b"", b"two", b"frames"], [b"no empty frame"])
    send(node.settings.init_port, zmq.DEALER, [b"", msgspec.msgpack.encode(introduction)])
