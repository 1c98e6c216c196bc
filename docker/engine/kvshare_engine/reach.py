"""Who can reach which port: short-lived TCP listeners on one machine, connections from the others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil

from kvshare.contract import Answer, Endpoint, Held, Refusal

DIAL_TIMEOUT_S = 3.0


def endpoint(text: str) -> Endpoint:
    """The endpoint that ``HOST:PORT`` names; ValueError if it names none."""
    host, _, port = text.rpartition(":")
    return Endpoint(host, int(port))


def taken() -> tuple[Endpoint, ...]:
    """Every TCP port that something on this machine listens on, by number."""
    sockets: list[Any] = psutil.net_connections("tcp")
    found = {Endpoint(*s.laddr) for s in sockets if s.status == psutil.CONN_LISTEN and s.laddr}
    return tuple(sorted(found, key=lambda place: (place.port, place.host)))


@contextmanager
def listening(wanted: Sequence[Endpoint]) -> Iterator[Held]:
    """Hold ports without accepting: the kernel answers who connects."""
    held: list[Endpoint] = []
    refused: list[Refusal] = []
    with ExitStack() as sockets:
        for one in wanted:
            try:
                sockets.enter_context(socket.create_server((one.host, one.port), backlog=64))
            except OSError as error:
                refused.append(Refusal(one.host, one.port, _reason(error)))
            else:
                held.append(one)
        yield Held(tuple(held), tuple(refused))


def dial(targets: Sequence[Endpoint]) -> list[Answer]:
    """Connect to every target at once, at most DIAL_TIMEOUT_S each, and hang up."""
    with ThreadPoolExecutor(max(1, len(targets))) as pool:
        return list(pool.map(_dial, targets))


def _dial(target: Endpoint) -> Answer:
    started, error = time.monotonic(), ""
    try:
        socket.create_connection((target.host, target.port), DIAL_TIMEOUT_S).close()
    except TimeoutError:
        error = f"no answer in {DIAL_TIMEOUT_S:.0f} s"
    except OSError as failure:
        error = _reason(failure)
    return Answer(target.host, target.port, round(time.monotonic() - started, 6), error)


def _reason(error: OSError) -> str:
    """What the system calls the error, without what Python adds to it."""
    return os.strerror(error.errno).lower() if error.errno else str(error)
