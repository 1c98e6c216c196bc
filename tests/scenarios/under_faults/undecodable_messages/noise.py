"""Sends what no socket of LMCache can use; runs in the engine image. Arguments: push|dealer HOST PORT."""

import sys

import zmq
from probes.noise import bad_messages, send

ROLES = {"push": zmq.PUSH, "dealer": zmq.DEALER}

if __name__ == "__main__":
    role, host, port = sys.argv[1:]
    messages = bad_messages()
    if role == "push":
        frames = [[message] for message in messages]
    else:
        frames = [*([b"", message] for message in messages), [b"", b"two", b"frames"], [b"no empty frame"]]
    send(int(port), ROLES[role], *frames, host=host)
    print(len(messages))
