"""Sends what no socket of LMCache can use, with the cluster's key; arguments: push|dealer|req:HOST:PORT …"""

import sys
from collections.abc import Sequence

import zmq
from lmcache.v1.cluster_key import secure
from probes.noise import SECONDS_TO_SEND, bad_messages

ROLES = {"push": zmq.PUSH, "dealer": zmq.DEALER, "req": zmq.REQ}


def make_noise(role: str, host: str, port: str) -> int:
    """Send every bad message to one socket, and return how many it must count at least."""
    messages = bad_messages()
    if role != "dealer":
        frames = [[message] for message in messages]
    else:
        frames = [*([b"", message] for message in messages), [b"", b"two", b"frames"], [b"no empty frame"]]
    context = zmq.Context()
    for message in frames:
        _send(context.socket(ROLES[role]), f"{host}:{port}", message)
    context.term()
    return len(messages)


def _send(client: zmq.Socket[bytes], address: str, frames: Sequence[bytes]) -> None:
    client.setsockopt(zmq.LINGER, SECONDS_TO_SEND * 1000)
    secure(client, listens=False, address=address)
    client.connect(f"tcp://{address}")
    client.send_multipart(frames)
    if client.socket_type != zmq.PUSH:
        client.poll(200)  # a client that leaves at once may take its request with it
    client.close()


if __name__ == "__main__":
    for target in sys.argv[1:]:
        print(make_noise(*target.split(":")))
