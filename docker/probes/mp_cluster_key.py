"""Probe of mp-cluster-key: on a cache server's ports only who has the cluster's key gets a word in."""

from __future__ import annotations

import tempfile
from pathlib import Path

import zmq

from probes import ProbeError
from probes.cache_node import place_for, running_cache
from probes.cluster_key import key_file_in, require_key

OBJECTS = 3


def probe() -> None:
    """Raises ProbeError unless who has the key pulls and is let in, and everybody else is turned away."""
    with tempfile.TemporaryDirectory() as folder:
        key_file = key_file_in(Path(folder))
        with (
            running_cache(place_for(key_file=key_file)) as a,
            running_cache(place_for(key_file=key_file)) as b,
        ):
            require_key(a.place.requests, zmq.DEALER)
            require_key(a.place.transfers, zmq.REQ)
            a.ask("store", seed=1, objects=OBJECTS)
            b.ask("connect", requests=a.place.requests, transfers=a.place.transfers)
            if (found := b.ask("get", seed=1, objects=OBJECTS)) != {"hits": OBJECTS, "wrong": 0}:
                raise ProbeError(
                    f"Of two cache servers with the key one should pull from the other: {found}."
                )
            counted = a.ask("rejected")
            for port in (a.place.requests, a.place.transfers):
                if counted.get(f"port {port}", 0) < 2:
                    raise ProbeError(f"Both who were turned away should be counted: {counted}.")
