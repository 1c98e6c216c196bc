"""Probe of peer-introduction: nodes that registered are connected before anybody asks for a prompt."""

from __future__ import annotations

import time

from probes import ProbeError
from probes.controller import free_ports, running_controller
from probes.node import HEARTBEAT_S, Node, running_node, settings_for

CONNECTED = "Established connection to peer_init_url: "
WITHIN_S = 10 * HEARTBEAT_S
PROMPT = {"seed": 1, "chunks": 3}


def probe() -> None:
    """Raises ProbeError unless each node is connected to the other in time, and pulls without connecting."""
    ports = free_ports()
    with running_controller(ports), running_node(settings_for("b", ports)) as b:
        # A node has started before it is registered: "there before" is what the controller knows of.
        b.wait_until_synced(ports)
        with running_node(settings_for("a", ports)) as a:
            _require_connection(a, b, "was there before")
            _require_connection(b, a, "came later")
            a.wait_until_synced(ports)
            a.ask("store", **PROMPT)
            connections = b.logged(CONNECTED)
            if not b.pull_until_hit(**PROMPT)["hits"]:
                raise ProbeError("A prompt of a peer should be pulled.")
            if b.logged(CONNECTED) != connections:
                raise ProbeError("The first pull should need no new connection.")
        with running_node(settings_for("a", ports)) as a:
            _require_connection(b, a, "came back at another address")


def _require_connection(node: Node, peer: Node, which: str) -> None:
    wanted = f"{CONNECTED}127.0.0.1:{peer.settings.init_port}"
    deadline = time.monotonic() + WITHIN_S
    while not node.logged(wanted):
        if time.monotonic() > deadline:
            raise ProbeError(
                f"A node should be connected to a peer that {which} within {WITHIN_S} s, without a request."
            )
        time.sleep(0.1)
