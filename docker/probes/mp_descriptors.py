"""Probe of mp-descriptors: what a stranger sends a cache server as its memory's addresses runs no code."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from pathlib import Path

from probes import ProbeError
from probes.cache_node import place_for, running_cache
from probes.controller import request
from probes.noise import MakesAFolder

OBJECTS, SEED = 3, 1


def probe() -> None:
    """Raises ProbeError unless nothing ran, and a peer pulls after it."""
    place = place_for()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_cache(place) as owner,
        running_cache(place_for()) as peer,
    ):
        made = Path(folder) / "made"
        message = {
            "type": "MemRegReq",
            "sender_agent_name": "nobody",
            "sender_advertise_url": "127.0.0.1:1",
            "xfer_descs": pickle.dumps(MakesAFolder(made)),
        }
        with contextlib.suppress(ValueError):  # an empty answer
            request(place.transfers, message)
        if made.exists():
            raise ProbeError("What a stranger sends to the port where peers meet should run nothing; it ran.")
        owner.ask("store", seed=SEED, objects=OBJECTS)
        peer.ask("connect", requests=place.requests, transfers=place.transfers)
        if (found := peer.ask("get", seed=SEED, objects=OBJECTS)) != {"hits": OBJECTS, "wrong": 0}:
            raise ProbeError(f"After a stranger's message a peer should find all, and finds {found}.")
