"""Messages that no socket of LMCache can use, or that none should run."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import zmq

SECONDS_TO_SEND = 10
TEN_MB = random.Random(7).randbytes(10_000_000)


class MakesAFolder:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._path),)


def bad_messages() -> list[bytes]:
    """Undecodable, truncated, wrongly typed, endlessly nested and large ones."""
    health = msgspec.msgpack.encode({"type": "HealthWorkerMsg", "worker_event_id": "e"})
    return [
        b"",
        b"\xc1" * 9,
        health[:-3],
        msgspec.msgpack.encode(42),
        msgspec.msgpack.encode({"type": "RegisterMsg", "instance_id": 1}),
        msgspec.msgpack.encode({"type": "LookupMsg", "event_id": "e", "tokens": [1]}),
        msgspec.msgpack.encode({"type": "DeRegisterMsg", "instance_id": [], "worker_id": 0}),
        b'{"type": "\xff\xfe"}',
        b'{"a":' * 50_000,
        b"\x91" * 1_000_000,
        TEN_MB,
    ]


def send(port: int, role: int, *messages: Sequence[bytes], host: str = "127.0.0.1") -> None:
    """Send each message (its frames) from a client of its own, and wait for no answer."""
    context = zmq.Context()
    for frames in messages:
        client = context.socket(role)
        client.setsockopt(zmq.LINGER, SECONDS_TO_SEND * 1000)
        client.connect(f"tcp://{host}:{port}")
        client.send_multipart(list(frames))
        if role != zmq.PUSH:
            client.poll(200)  # a client that leaves at once may take its request with it
        client.close()
    context.term()
    time.sleep(1)
