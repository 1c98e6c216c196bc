"""Probe of pulled-from: a node counts the bytes that each of its peers has written into it."""

from __future__ import annotations

from probes import ProbeError
from probes.controller import free_ports, running_controller
from probes.node import Node, running_node, settings_for

COUNTER = "lmcache:pulled_bytes_total"
HELD = {"one": 3, "other": 2}  # chunks, by owner


def probe() -> None:
    """Raises ProbeError unless the puller has counted what came from whom, and the owners nothing."""
    ports = free_ports()
    with (
        running_controller(ports),
        running_node(settings_for("one", ports)) as one,
        running_node(settings_for("other", ports)) as other,
        running_node(settings_for("puller", ports)) as puller,
    ):
        owners = {"one": one, "other": other}
        expected = {}
        for seed, (name, owner) in enumerate(owners.items(), start=1):
            owner.wait_until_synced(ports)
            owner.ask("store", seed=seed, chunks=HELD[name])
            hits = puller.pull_until_hit(seed=seed, chunks=HELD[name])["hits"]
            if hits != HELD[name] * owner.settings.chunk:
                raise ProbeError(f"{HELD[name]} chunks should be pulled, but {hits} tokens were.")
            expected[_address(owner)] = float(HELD[name] * owner.settings.chunk_bytes)
        found = puller.ask("counted_by", counter=COUNTER, label="peer")
        if found != expected:
            raise ProbeError(f"Bytes pulled from each peer should be {expected}, but are {found}.")
        for name, owner in owners.items():
            if told := owner.ask("counted_by", counter=COUNTER, label="peer"):
                raise ProbeError(f"Node {name} has pulled nothing, but counts {told}.")


def _address(node: Node) -> str:
    return f"{node.settings.host}:{node.settings.init_port}"
