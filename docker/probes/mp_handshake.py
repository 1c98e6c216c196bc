"""Probe of mp-handshake: a message that is none keeps nobody else from meeting a cache server."""

from __future__ import annotations

from probes import ProbeError
from probes.cache_node import place_for, running_cache

OBJECTS, SEED = 3, 1
HEARD_S = 2.0  # by when what was sent has been read
ALL = {"hits": OBJECTS, "wrong": 0}


def probe() -> None:
    """Raises ProbeError unless a cache server is met and read from after a message that is none."""
    place = place_for()
    with running_cache(place) as owner, running_cache(place_for()) as peer:
        owner.ask("store", seed=SEED, objects=OBJECTS)
        _say_nothing(place.transfer_url)
        try:
            peer.ask("connect", requests=place.requests, transfers=place.transfers)
            found = peer.ask("get", seed=SEED, objects=OBJECTS)
        except ProbeError:
            found = "nobody"
        if found != ALL:
            raise ProbeError(f"After a message that is none a peer should find all, and finds {found}.")


def _say_nothing(url: str) -> None:
    import zmq

    socket = zmq.Context.instance().socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(f"tcp://{url}")
    socket.send(b"nothing")
    socket.poll(HEARD_S * 1000)  # without an answer it was read all the same
    socket.close()
