"""ZeroMQ's own protocol as whoever reaches a port speaks it: ZMTP 3.0 (RFC 23) with no security mechanism."""

from __future__ import annotations

import socket
from contextlib import suppress

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4
TIMEOUT_S = 10


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) > 255:
        return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def opening(role: str) -> bytes:
    """What a client says first: its greeting, and which kind of socket it is."""
    name = role.upper().encode()
    ready = b"\x05READY" + b"\x0bSocket-Type" + len(name).to_bytes(4, "big") + name
    return GREETING + frame(ready, COMMAND)


def ask(address: tuple[str, int], role: str, message: bytes) -> bytes | None:
    """Send a message; return the last frame of the answer, or None where the connection was closed instead.

    A `push` socket, which is never answered, waits until what it sent is taken or refused.
    """
    envelope = b"" if role == "push" else frame(b"", MORE)
    refused = suppress(ConnectionError, EOFError)
    with socket.create_connection(address, timeout=TIMEOUT_S) as connection, refused:
        connection.sendall(opening(role))
        _read(connection, len(GREETING))
        _frame(connection)  # it is ready too; what came before that would be refused
        connection.sendall(envelope + frame(message))
        if role == "push":
            connection.shutdown(socket.SHUT_WR)
        while True:
            flags, body = _frame(connection)
            if not flags & (COMMAND | MORE):
                return body
    return None


def _frame(connection: socket.socket) -> tuple[int, bytes]:
    (flags,) = _read(connection, 1)
    size = int.from_bytes(_read(connection, 8 if flags & LONG else 1), "big")
    return flags, _read(connection, size)


def _read(connection: socket.socket, size: int) -> bytes:
    """Raises EOFError where the other side closes first, TimeoutError where it says nothing."""
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise EOFError
        found += part
    return found
