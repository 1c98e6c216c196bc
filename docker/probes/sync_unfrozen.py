"""Probe of sync-unfrozen: a controller that was away learns every key, and the worker never stands still."""

from __future__ import annotations

import itertools
import time

from probes import ProbeError
from probes.controller import Ports, free_ports, running_controller
from probes.node import Node, running_node, settings_for, synced_workers

CHUNKS = 3
AWAY_S = 4.0
STORING_S = 4.0
KNOWN_WITHIN_S = 15.0
# Upstream's would be random; without one its freeze falls into the time of storing.
NO_DELAY = {"full_sync_startup_delay_s": 0.0}


def probe() -> None:
    """Raises ProbeError unless all keys are known within 15 s of the controller's return."""
    ports = free_ports()
    with running_node(settings_for("a", ports, extra=NO_DELAY)) as node:
        with running_controller(ports):
            node.wait_until_synced(ports)
            node.ask("store", seed=1, chunks=CHUNKS)
        node.ask("store", seed=2, chunks=CHUNKS)
        time.sleep(AWAY_S)
        with running_controller(ports):
            returned = time.monotonic()
            for seed in itertools.count(3):
                node.ask("store", seed=seed, chunks=CHUNKS)
                time.sleep(0.2)
                if time.monotonic() > returned + STORING_S:
                    break
            _wait_until_known(ports, node, seed * CHUNKS, returned + KNOWN_WITHIN_S)


def _wait_until_known(ports: Ports, node: Node, keys: int, deadline: float) -> None:
    while True:
        found = synced_workers(ports).get(node.settings.instance)
        if found == (True, keys):
            return
        if time.monotonic() > deadline:
            raise ProbeError(f"The controller should be synchronised and know {keys} keys, but has {found}.")
        time.sleep(0.2)
