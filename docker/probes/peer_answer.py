"""Probe of peer-answer: whatever happens to a peer nobody waits long, and it is found when it returns."""

from __future__ import annotations

from dataclasses import replace

from probes import ProbeError
from probes.controller import Ports, free_ports, running_controller
from probes.node import Node, running_node, settings_for

CHUNKS = 3
BACK_WITHIN_S = 30.0
# Half of what a socket waits by default: who waits for that misses the next lookup.
LOOKUP_TIMEOUT_MS = 1500


def probe() -> None:
    """Raises ProbeError unless pulls, from the peer and from another, and local hits are over in time."""
    ports = free_ports()
    settings = settings_for("a", ports)
    with (
        running_controller(ports),
        running_node(settings_for("b", ports, config={"lookup_timeout_ms": LOOKUP_TIMEOUT_MS})) as b,
        running_node(settings_for("c", ports)) as c,
    ):
        with running_node(settings) as a:
            _fill(ports, a, b, c)
            b.pull_until_hit(seed=1, chunks=CHUNKS)
            a.fork.pause()
            _check(b, "stopped")
        _check(b, "killed")
        for where, again in (
            ("the old address", settings),
            ("a new address", replace(settings, init_port=free_ports().pull, lookup_port=free_ports().reply)),
        ):
            with running_node(again) as a:
                _fill(ports, a)
                if not b.pull_until_hit(seed=1, chunks=CHUNKS, seconds=BACK_WITHIN_S)["hits"]:
                    raise ProbeError(f"A peer that returned at {where} should be pulled from again.")


def _fill(ports: Ports, *nodes: Node) -> None:
    """Each node stores a prompt of its own, whose seed is its place."""
    for seed, node in enumerate(nodes, start=1):
        node.wait_until_synced(ports)
        node.ask("store", seed=seed, chunks=CHUNKS)


def _check(node: Node, state: str) -> None:
    for _ in range(2):
        node.get(seed=1, chunks=CHUNKS)
        if not node.get(seed=2, chunks=CHUNKS)["hits"]:
            raise ProbeError(f"With a peer {state}, a local hit should be a hit.")
        if not node.pull_until_hit(seed=3, chunks=CHUNKS)["hits"]:
            raise ProbeError(f"With a peer {state}, another should be pulled from.")
