"""Probe of quarantine: a peer that answers after all does not write into what is another prompt's by then."""

from __future__ import annotations

import os
import signal
import time

from probes import ProbeError
from probes.node import two_nodes

CHUNKS = 3
PAGES = 8
OWN = range(10, 18)  # prompts of a chunk each, more than there is room for
ANSWERED_S = 2.0


def probe() -> None:
    """Raises ProbeError unless what a node stored after a failed pull still has its values later."""
    with two_nodes(pages=PAGES) as (_, a, b):
        for seed in (1, 2):
            a.ask("store", seed=seed, chunks=CHUNKS)
        if not b.pull_until_hit(seed=1, chunks=CHUNKS)["hits"]:
            raise ProbeError("A prompt of a peer should be pulled.")
        os.kill(a.fork.pid, signal.SIGSTOP)
        if b.get(seed=2, chunks=CHUNKS)["hits"]:
            raise ProbeError("A prompt of a stopped peer should be a miss.")
        for seed in OWN:
            b.ask("store", seed=seed, chunks=1)
        os.kill(a.fork.pid, signal.SIGCONT)
        time.sleep(ANSWERED_S)
        kept = [b.get(seed=seed, chunks=1)["hits"] > 0 for seed in OWN]
        if not any(kept):
            raise ProbeError("A node should keep prompts of its own.")
