"""Probe of mp-served: cache servers count what they read from each peer, and tell others to read."""

from __future__ import annotations

from contextlib import ExitStack

from probes import ProbeError
from probes.cache_node import PAGE, place_for, running_cache

OBJECTS = (3, 2)  # of the prompts that two peers hold


def probe() -> None:
    """Raises ProbeError unless each side of two pulls counts its bytes."""
    with ExitStack() as stack:
        *owners, puller = (stack.enter_context(running_cache(place_for())) for _ in range(3))
        for seed, (owner, objects) in enumerate(zip(owners, OBJECTS, strict=True)):
            owner.ask("store", seed=seed, objects=objects)
            puller.ask("connect", requests=owner.place.requests, transfers=owner.place.transfers)
            puller.ask("get", seed=seed, objects=objects)
        pulled = puller.ask("counted", counter="lmcache_mp_p2p_pulled_bytes_total")
        expected = {
            owner.place.transfer_url: float(objects * PAGE)
            for owner, objects in zip(owners, OBJECTS, strict=True)
        }
        if pulled != expected:
            raise ProbeError(f"Bytes pulled from each peer should be {expected}, but are {pulled}.")
        for owner, objects in zip(owners, OBJECTS, strict=True):
            served = owner.ask("counted", counter="lmcache_mp_p2p_served_bytes_total")
            if served != {"": float(objects * PAGE)}:
                raise ProbeError(f"An owner should have served {objects * PAGE} bytes, but says {served}.")
