"""Sends what no socket of LMCache can use, from the engine image; arguments: push|dealer:HOST:PORT …"""

import sys

import zmq
from probes.noise import bad_messages, send

ROLES = {"push": zmq.PUSH, "dealer": zmq.DEALER}


def make_noise(role: str, host: str, port: str) -> int:
    """Send every bad message to one socket, and return how many it must count at least."""
    messages = bad_messages()
    if role == "push":
        frames = [[message] for message in messages]
    else:
        frames = [*([b"", message] for message in messages), [b"", b"two", b"frames"], [b"no empty frame"]]
    send(int(port), ROLES[role], *frames, host=host)
    return len(messages)


if __name__ == "__main__":
    for target in sys.argv[1:]:
        print(make_noise(*target.split(":")))
