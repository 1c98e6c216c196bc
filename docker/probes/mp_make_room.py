"""Probe of mp-make-room: what is stored or pulled at once finds room, whatever was there before."""

from __future__ import annotations

from probes import ProbeError
from probes.cache_node import CacheNode, place_for, running_cache

PAGES = 64
OLD, NEW = 48, 24  # objects; three quarters of the memory are below the mark at which it is emptied
FIRST, STORED, PULLED, LAST = 1, 2, 3, 4  # prompts


def probe() -> None:
    """Raises ProbeError unless older prompts make room for a store and for a pull."""
    with running_cache(place_for()) as a, running_cache(place_for(pages=PAGES)) as b:
        b.ask("store", seed=FIRST, objects=OLD)
        if (stored := b.ask("store", seed=STORED, objects=NEW)) != NEW:
            raise ProbeError(f"Of {NEW} objects all should be stored where older ones are, not {stored}.")
        _right(b, STORED)
        a.ask("store", seed=PULLED, objects=NEW)
        b.ask("connect", requests=a.place.requests, transfers=a.place.transfers)
        b.ask("store", seed=LAST, objects=PAGES // 2)
        _right(b, PULLED)


def _right(node: CacheNode, seed: int) -> None:
    found = node.ask("get", seed=seed, objects=NEW)
    if found != {"hits": NEW, "wrong": 0}:
        raise ProbeError(f"Of {NEW} objects all should be found and right: {found}.")
