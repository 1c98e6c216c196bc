"""Probe of peer-connect: a peer that cannot be connected to is a miss, and others can be pulled from."""

from __future__ import annotations

from probes import ProbeError, happens
from probes.controller import free_ports, running_controller
from probes.node import running_node, settings_for, synced_workers
from probes.stand_in import StandIn

CHUNKS = 3


def probe() -> None:
    """Raises ProbeError unless a node that is sent to where nobody answers goes on pulling from another."""
    ports = free_ports()
    with running_controller(ports), running_node(settings_for("b", ports)) as b:
        gone = StandIn(ports, "gone", peer_init_url=f"127.0.0.1:{free_ports().http}")
        gone.register()
        gone.report(b.ask("hashes", seed=1, chunks=CHUNKS))
        if not happens(lambda: synced_workers(ports)["gone"][1] == CHUNKS):
            raise ProbeError("The controller should know what the peer that is gone has reported.")
        if b.get(seed=1, chunks=CHUNKS)["hits"]:
            raise ProbeError("A prompt of a peer that is gone should be a miss.")
        with running_node(settings_for("c", ports)) as c:
            c.wait_until_synced(ports)
            c.ask("store", seed=2, chunks=CHUNKS)
            if not b.pull_until_hit(seed=2, chunks=CHUNKS)["hits"]:
                raise ProbeError("While one peer is connected to, another should be pulled from.")
