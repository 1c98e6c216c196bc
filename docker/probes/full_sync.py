"""Probe of full-sync: a controller that was away learns every key, and the worker never stands still."""

from __future__ import annotations

import time

import msgspec
import zmq

from probes import ProbeError
from probes.controller import Ports, free_ports, running_controller
from probes.node import Node, running_node, settings_for, synced_workers
from probes.noise import send

CHUNKS = 3
AWAY_S = 4.0
KNOWN_WITHIN_S = 15.0


def probe() -> None:
    """Raises ProbeError unless all keys are known within 15 s of the controller's return, and after a gap."""
    ports = free_ports()
    with running_node(settings_for("a", ports)) as node:
        with running_controller(ports):
            node.wait_until_synced(ports)
            node.ask("store", seed=1, chunks=CHUNKS)
        node.ask("store", seed=2, chunks=CHUNKS)
        time.sleep(AWAY_S)
        with running_controller(ports):
            returned = time.monotonic()
            seed = 3
            while time.monotonic() < returned + 8:  # as long as upstream's freeze lasts
                node.ask("store", seed=seed, chunks=CHUNKS)
                seed += 1
                time.sleep(0.5)
            _wait_until_known(ports, node, (seed - 1) * CHUNKS, returned + KNOWN_WITHIN_S)
            _lose_a_message(ports, node)
            _wait_until_known(ports, node, (seed - 1) * CHUNKS, time.monotonic() + KNOWN_WITHIN_S)


def _wait_until_known(ports: Ports, node: Node, keys: int, deadline: float) -> None:
    while True:
        found = synced_workers(ports).get(node.settings.instance)
        if found == (True, keys):
            return
        if time.monotonic() > deadline:
            raise ProbeError(f"The controller should be synchronised and know {keys} keys, but has {found}.")
        time.sleep(0.2)


def _lose_a_message(ports: Ports, node: Node) -> None:
    """Report, in the node's name, an eviction whose number leaves a gap."""
    key = node.ask("some_key")
    batch = {
        "type": "BatchedKVOperationMsg",
        "instance_id": node.settings.instance,
        "worker_id": 0,
        "location": "LocalCPUBackend",
        "operations": [{"op_type": "evict", "key": key, "seq_num": 10_000}],
    }
    send(ports.pull, zmq.PUSH, [msgspec.msgpack.encode(batch)])
