"""Probe of full-memory: a pull brings what memory has room for, and the node goes on pulling."""

from __future__ import annotations

from probes import ProbeError
from probes.node import CHUNK, two_nodes

PAGES = 4


def probe() -> None:
    """Raises ProbeError unless a node pulls as much as it has pages for, and can pull again."""
    with two_nodes(pages=PAGES) as (_, a, b):
        a.ask("store", seed=1, chunks=2 * PAGES)
        a.ask("store", seed=2, chunks=1)
        for seed, chunks, expected in ((1, 2 * PAGES, PAGES), (2, 1, 1)):
            found = b.pull_until(seed, chunks, expected * CHUNK)
            if (found["hits"], found["wrong"]) != (expected * CHUNK, 0):
                raise ProbeError(
                    f"Of {chunks} chunks {expected} should be pulled into {PAGES} pages, but got {found}."
                )
