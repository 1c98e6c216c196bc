"""Probe of mp-bad-messages: on no port of a cache server a message that cannot be used ends anything."""

from __future__ import annotations

import zmq

from probes import ProbeError, happens
from probes.cache_node import place_for, running_cache
from probes.noise import bad_messages, send

OBJECTS, SEED = 3, 1
COUNTED_S = 20.0
UNKNOWN = [b"\x01", b"no operation"]


def probe() -> None:
    """Raises ProbeError unless every bad message is counted, and a peer pulls from who got them."""
    place, messages = place_for(), bad_messages()
    with running_cache(place) as owner, running_cache(place_for()) as peer:
        owner.ask("store", seed=SEED, objects=OBJECTS)
        # An operation of no bytes is a stream's, that may have ended.
        of_one, of_two = ([message] for message in messages), ([b"\x01", one] for one in messages if one)
        asked = [*of_one, *of_two, UNKNOWN]
        send(place.requests, zmq.DEALER, *asked)
        send(place.transfers, zmq.REQ, *([message] for message in messages))
        sent = {"requests": len(asked), "p2p": len(messages)}

        def all_counted() -> bool:
            counted = owner.ask("rejected")
            return all(counted.get(socket, 0) >= number for socket, number in sent.items())

        if not happens(all_counted, COUNTED_S):
            raise ProbeError(f"Bad messages should be counted as {sent}, and are as {owner.ask('rejected')}.")
        peer.ask("connect", requests=place.requests, transfers=place.transfers)
        if (found := peer.ask("get", seed=SEED, objects=OBJECTS)) != {"hits": OBJECTS, "wrong": 0}:
            raise ProbeError(f"After bad messages a peer should find all, and finds {found}.")
