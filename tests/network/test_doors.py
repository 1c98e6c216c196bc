"""The scan of tests/rig/doors.py: it finds what answers, and tells what is not as the table says."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.rig.doors import scan, unlike

OWN, ANOTHER = "127.0.0.2", "127.0.0.9"
ROWS = [range(8010, 8011), range(8700, 8800)]


@pytest.fixture(params=[OWN, "0.0.0.0"])
def door(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    with socket.create_server((request.param, 0)) as server:
        yield request.param, server.getsockname()[1]


def test_a_port_that_listens_on_all_addresses_is_found_at_any(door: tuple[str, int]) -> None:
    address, port = door
    near = range(port, port + 1)
    assert scan([], OWN, near) == {port}
    assert scan([], ANOTHER, near) == ({port} if address == "0.0.0.0" else set())


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({8010, 8755}, []),
        ({8010}, ["0 of range(8700, 8800) answer"]),
        ({8010, 8700, 8799}, ["2 of range(8700, 8800) answer"]),
        ({8010, 8500, 8700}, ["8500 answers and is not in the table"]),
    ],
)
def test_what_differs_from_the_table_is_named(found: set[int], said: list[str]) -> None:
    assert unlike(ROWS, found) == said
