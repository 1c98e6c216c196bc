"""Which ports of a host answer, all of them tried, and whether the ports table says so."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from tests.rig import network

EVERY_PORT = range(1, 65536)
SCAN_TIMEOUT_S = 300
# Dials ports of a host, a thousand at a time, and prints those that answer.
SCAN = """
import errno, select, socket, sys, time
def answering(host, ports):
    waiting, dialled, found = select.poll(), {}, []
    for port in ports:
        dialler = socket.socket()
        dialler.setblocking(False)
        if dialler.connect_ex((host, port)) in (0, errno.EINPROGRESS):
            dialled[dialler.fileno()] = dialler, port
            waiting.register(dialler, select.POLLOUT)
    end = time.monotonic() + 3
    while dialled and time.monotonic() < end:
        for number, _ in waiting.poll(3000):
            waiting.unregister(number)
            dialler, port = dialled.pop(number)
            if dialler.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(port)
            dialler.close()
    return found
host, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for start in range(first, last + 1, 1000):
    print(*answering(host, range(start, min(start + 1000, last + 1))))
"""


def scan(on: Sequence[str], address: str, ports: range = EVERY_PORT) -> set[int]:
    """The ports that answer at an address; ``on`` is what runs a command on the host that dials."""
    command = [*on, sys.executable, "-c", SCAN, address, str(ports[0]), str(ports[-1])]
    return {int(port) for port in network.run(command, SCAN_TIMEOUT_S).split()}


def unlike(table: Iterable[range], found: set[int]) -> list[str]:
    """What differs from a table in which each row, a port or a range, has one port that answers."""
    rows = list(table)
    strange = found - {port for row in rows for port in row}
    return [
        *(f"{len(found & set(row))} of {row} answer" for row in rows if len(found & set(row)) != 1),
        *(f"{port} answers and is not in the table" for port in sorted(strange)),
    ]
