"""Which ports of a host answer, all of them tried, and whether the ports table says so."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from tests.rig import network

EVERY_PORT = range(1, 65536)
SCAN_TIMEOUT_S = 300
# Dials ports of a host, a thousand at a time, and prints those that answer.
SCAN = """
import asyncio, sys
async def main(host, first, last):
    gate = asyncio.Semaphore(1000)
    async def dial(port):
        async with gate:
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 3)
            except (OSError, TimeoutError, asyncio.TimeoutError):
                return None
            writer.close()
            return port
    found = await asyncio.gather(*map(dial, range(int(first), int(last) + 1)))
    print(*(port for port in found if port))
asyncio.run(main(*sys.argv[1:]))
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
