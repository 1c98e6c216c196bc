"""Clients of the gateway that go away, or hardly read."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from kvshare.servers.http import Http

HOST, PORT = "127.0.0.1", 8000
COMPLETIONS = "/v1/completions"
WINDOW = 2048  # bytes that a client has room for; a kernel gives hardly less
LONG, SHORT = 1000, 100  # tokens of an answer: half a minute, some seconds
DEADLINE_S = 120.0


@contextmanager
def asking(
    prompt: str, tokens: int = LONG, *, stream: bool = True, window: int | None = None
) -> Iterator[socket.socket]:
    """A request whose answer nobody has read yet; at the block's end its client hangs up."""
    fields = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "logprobs": 5, "stream": stream}
    body = json.dumps(fields | ({"stream_options": {"include_usage": True}} if stream else {})).encode()
    with socket.socket() as client:
        client.settimeout(DEADLINE_S)
        if window:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        client.connect((HOST, PORT))
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield client


def read_until(client: socket.socket, end: bytes) -> bytes:
    """Return what comes up to these bytes, read one by one; AssertionError if the answer ends before."""
    read = bytearray()
    while not read.endswith(end):
        found = client.recv(1)
        assert found, bytes(read[-500:])
        read += found
    return bytes(read)


def ask(prompt: str) -> str:
    """Return an answer as most clients take it; RequestFailedError without one."""
    return gateway().post(COMPLETIONS, {"prompt": prompt, "max_tokens": 4}, DEADLINE_S)


def running() -> dict[str, int]:
    """How many requests the gateway has at each server."""
    nodes = json.loads(gateway().get("/health", DEADLINE_S))["nodes"]
    return {node["name"]: node["running"] for node in nodes}


def gateway() -> Http:
    return Http(f"http://{HOST}:{PORT}")
