"""Probe of mp-peer-restart: a peer that was restarted where it was is read from again."""

from __future__ import annotations

from probes import ProbeError, happens
from probes.cache_node import CacheNode, place_for, running_cache

OBJECTS = 3
AGAIN_S = 30.0
ALL = {"hits": OBJECTS, "wrong": 0}


def probe() -> None:
    """Raises ProbeError unless a restarted peer is read from, whether it is taken for another one or not."""
    place = place_for()
    with running_cache(place_for()) as b:
        with running_cache(place) as a:
            _hold(a, seed=1)
            _connect(b, a)
            if (found := _get(b, seed=1)) != ALL:
                raise ProbeError(f"A prompt of a peer should be pulled, and right: {found}.")
        for seed in (2, 3):
            with running_cache(place) as a:
                _hold(a, seed)
                _connect(a, b)  # the first one that meets the other
                if seed == 3:  # by another name, and the old one is left later
                    _connect(b, a)
                    b.ask("leave", requests=place.requests, seconds=10)
                _require_pull(b, seed)


def _require_pull(node: CacheNode, seed: int) -> None:
    if not happens(lambda: _get(node, seed) == ALL, AGAIN_S):
        raise ProbeError(f"A peer that was restarted should be pulled from, not {_get(node, seed)}.")


def _hold(node: CacheNode, seed: int) -> None:
    node.ask("store", seed=seed, objects=OBJECTS)


def _get(node: CacheNode, seed: int) -> dict[str, int]:
    found: dict[str, int] = node.ask("get", seed=seed, objects=OBJECTS)
    return found


def _connect(node: CacheNode, peer: CacheNode) -> None:
    node.ask("connect", requests=peer.place.requests, transfers=peer.place.transfers)
