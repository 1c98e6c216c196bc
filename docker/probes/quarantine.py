"""Probe of quarantine: a peer that answers after all does not write into what is another prompt's by then."""

from __future__ import annotations

from probes import ProbeError, happens
from probes.node import two_nodes

CHUNKS = 3
PAGES = 8
OWN = range(10, 18)  # prompts of a chunk each, more than there is room for
ANSWERED_S = 20.0
GIVEN_UP = "Nothing pulled from"


def probe() -> None:
    """Raises ProbeError unless what a node stored after a failed pull still has its values later."""
    with two_nodes(pages=PAGES) as (_, a, b):
        for seed in (2, 1):  # whoever knows of 1 knows of 2
            a.ask("store", seed=seed, chunks=CHUNKS)
        if not b.pull_until_hit(seed=1, chunks=CHUNKS)["hits"]:
            raise ProbeError("A prompt of a peer should be pulled.")
        a.fork.pause()
        if b.get(seed=2, chunks=CHUNKS)["hits"]:
            raise ProbeError("A prompt of a stopped peer should be a miss.")
        if not happens(lambda: b.logged(GIVEN_UP) > 0):
            raise ProbeError("A pull from a stopped peer should be given up.")
        for seed in OWN:
            b.ask("store", seed=seed, chunks=1)
        a.fork.resume()
        if not happens(lambda: bool(b.ask("written", seed=2, chunks=CHUNKS)), ANSWERED_S):
            raise ProbeError("A peer that goes on should answer what it was asked.")
        kept = [b.get(seed=seed, chunks=1)["hits"] > 0 for seed in OWN]
        if not any(kept):
            raise ProbeError("A node should keep prompts of its own.")
