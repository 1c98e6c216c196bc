"""Probe of mp-late-read: what a read brings after it was given up is not written into another's memory."""

from __future__ import annotations

from probes import ProbeError, happens
from probes.cache_node import CacheNode, place_for, running_cache

OBJECTS = 8
PAGES = 32
LATE_S = 60.0
PULLED, GIVEN_UP, OWN = 1, 2, 3  # prompts


def probe() -> None:
    """Raises ProbeError unless memory that is read into is nobody else's until the read has ended."""
    with running_cache(place_for()) as a, running_cache(place_for(pages=PAGES)) as b:
        for seed in (PULLED, GIVEN_UP):
            a.ask("store", seed=seed, objects=OBJECTS)
        b.ask("connect", requests=a.place.requests, transfers=a.place.transfers)
        if (found := b.ask("get", seed=PULLED, objects=OBJECTS)) != {"hits": OBJECTS, "wrong": 0}:
            raise ProbeError(f"A prompt of a peer should be pulled, and right: {found}.")
        _give_up(a, b)
        if not (own := b.ask("store", seed=OWN, objects=PAGES - OBJECTS)):
            raise ProbeError("A node should keep prompts of its own.")
        a.fork.resume()
        if not happens(lambda: bool(b.ask("is_written", seed=GIVEN_UP)), LATE_S):
            raise ProbeError("A peer that goes on should be read from.")
        if (found := b.ask("get", seed=OWN, objects=own))["wrong"]:
            raise ProbeError(f"What a node stored should have its values after a late read: {found}.")
        _require_end(a, b)


def _give_up(a: CacheNode, b: CacheNode) -> None:
    """Read from a peer that is stopped meanwhile, until it is too late."""
    b.ask("stop_before_load", requests=a.place.requests, pid=a.fork.pid)
    if b.ask("get", seed=GIVEN_UP, objects=OBJECTS)["hits"]:
        raise ProbeError("A prompt of a stopped peer should be a miss.")


def _require_end(a: CacheNode, b: CacheNode) -> None:
    """A peer that dies while it is read from can be left, and the memory is free then."""
    if not happens(lambda: bool(b.ask("staged") == 0)):
        raise ProbeError("What a late read has written into should be free once it has ended.")
    _give_up(a, b)
    if b.ask("leave", requests=a.place.requests, seconds=1) != "busy":
        raise ProbeError("A peer that is read from should not be left yet.")
    a.fork.kill()
    if not happens(lambda: b.ask("leave", requests=a.place.requests, seconds=1) == "left", LATE_S):
        raise ProbeError("A peer that has died should be left.")
    if not happens(lambda: bool(b.ask("staged") == 0)):
        raise ProbeError("What a peer that has died would have written into should be free.")
