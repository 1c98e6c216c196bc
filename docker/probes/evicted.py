"""Probe of evicted: a peer that has not got what the controller promised answers with a miss."""

from __future__ import annotations

from probes import ProbeError
from probes.node import two_nodes
from probes.stand_in import StandIn

CHUNKS = 3


def probe() -> None:
    """Raises ProbeError unless such a pull is a miss, after which all of the node's memory is free."""
    with two_nodes() as (ports, a, b):
        a.ask("store", seed=1, chunks=CHUNKS)
        if not b.pull_until_hit(seed=1, chunks=CHUNKS)["hits"]:
            raise ProbeError("A prompt of a peer should be pulled.")
        other_name_of_a = StandIn(ports, "other", peer_init_url=f"127.0.0.1:{a.settings.init_port}")
        other_name_of_a.register()
        other_name_of_a.report(b.ask("hashes", seed=2, chunks=CHUNKS))
        asked = a.logged("Received P2P batched lookup and get msg")
        if b.get(seed=2, chunks=CHUNKS)["hits"]:
            raise ProbeError("What nobody stored should be a miss.")
        if a.logged("Received P2P batched lookup and get msg") == asked:
            raise ProbeError("The controller should send the node to its peer.")
        pages = b.ask("pages")
        if pages["free"] != pages["all"]:
            raise ProbeError(f"After a miss all pages should be free: {pages}.")
