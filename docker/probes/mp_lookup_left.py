"""Probe of mp-lookup-left: what a peer has found for nobody is not kept for anybody."""

from __future__ import annotations

from probes import ProbeError, happens
from probes.cache_node import LATE_S, CacheNode, place_for, running_cache

OBJECTS = 3


def probe() -> None:
    """Raises ProbeError unless a peer keeps nothing for lookups that were given up or forgotten."""
    with running_cache(place_for()) as a, running_cache(place_for()) as b:
        a.ask("store", seed=1, objects=OBJECTS)
        b.ask("connect", requests=a.place.requests, transfers=a.place.transfers)
        a.fork.pause()
        if b.ask("get", seed=1, objects=OBJECTS)["hits"]:
            raise ProbeError("A prompt of a stopped peer should be a miss.")
        a.fork.resume()
        if not happens(lambda: bool(a.ask("looked_up") == 1), LATE_S):
            raise ProbeError("A peer that goes on should look up what it was asked for.")
        if not happens(lambda: not _locked(a), LATE_S):
            raise ProbeError(
                f"After a lookup that was given up {_locked(a)} objects should be kept no longer."
            )
        b.ask("look_up_and_leave", requests=a.place.requests, seed=1, objects=OBJECTS)
        if _locked(a) != OBJECTS:
            raise ProbeError("What a peer looks up should be kept for it.")
        a.ask("drop_abandoned")
        if _locked(a):
            raise ProbeError("What a peer never asked about should be kept no longer.")
        if (found := b.ask("get", seed=1, objects=OBJECTS)) != {"hits": OBJECTS, "wrong": 0}:
            raise ProbeError(f"A prompt of a peer should be pulled, and right: {found}.")
        if not happens(lambda: not _locked(a), LATE_S):
            raise ProbeError("What a peer has read should be kept no longer.")


def _locked(node: CacheNode) -> int:
    return int(node.ask("locked", seed=1, objects=OBJECTS))
