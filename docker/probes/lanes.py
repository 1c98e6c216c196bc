"""Probe of lanes: KV comes over several connections, and what comes is right."""

from __future__ import annotations

import psutil

from probes import ProbeError
from probes.controller import Ports, free_ports, running_controller
from probes.node import Node, running_node, settings_for

FEWER, MORE = 3, 4
CHUNKS = 10  # shares that are not all equal


def probe() -> None:
    """Raises ProbeError unless two nodes, of 3 and of 4 lanes, use 3 to pull what is right."""
    ports = free_ports()
    with (
        running_controller(ports),
        running_node(settings_for("a", ports, lanes=MORE)) as a,
        running_node(settings_for("b", ports, lanes=FEWER)) as b,
    ):
        for seed, (owner, other) in enumerate(((a, b), (b, a)), start=1):
            _pull(ports, owner, other, seed)
        found = len(_connections(a, b))
        if found < FEWER:
            raise ProbeError(f"KV should travel on {FEWER} connections and does on {found}.")


def _pull(ports: Ports, owner: Node, other: Node, seed: int) -> None:
    owner.wait_until_synced(ports)
    owner.ask("store", seed=seed, chunks=CHUNKS)
    found = other.pull_until_hit(seed=seed, chunks=CHUNKS)
    if not found["hits"] or found["wrong"]:
        raise ProbeError(f"A pull by {other.settings.instance} should bring right values: {found}.")


def _connections(a: Node, b: Node) -> set[tuple[int, int]]:
    """UCX's connections between two nodes, by their ports: those that are not on a P2P port."""
    known = {node.settings.init_port for node in (a, b)} | {node.settings.lookup_port for node in (a, b)}
    others = {(theirs, own) for own, theirs in _established(b)}
    return {ports for ports in _established(a) & others if not known & set(ports)}


def _established(node: Node) -> set[tuple[int, int]]:
    """A node's connections by their ports, its own first."""
    connections = psutil.Process(node.fork.pid).net_connections("tcp4")
    return {(c.laddr.port, c.raddr.port) for c in connections if c.status == psutil.CONN_ESTABLISHED}
