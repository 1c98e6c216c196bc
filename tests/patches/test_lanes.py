"""lanes: KV comes over several connections, each object in pieces over all of them; unpatched, over one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any
from unittest.mock import MagicMock, patch

import msgspec
import nixl_lanes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lanes import PATCH
from upstream import Probe, without

MIB = 1024 * 1024


class StandIn(MagicMock):
    """A NIXL agent that keeps what it was told to write, as (near, far) places."""

    def get_xfer_descs(self, places: list[nixl_lanes.Place], _: str) -> list[nixl_lanes.Place]:
        return places

    def prep_xfer_dlist(self, _: bytes | str, places: Any, **__: Any) -> Any:
        return places

    def make_prepped_xfer(
        self, _: str, near: Any, near_indices: list[int], far: Any, far_indices: Any
    ) -> Any:
        self.written = [(near[a], far[b]) for a, b in zip(near_indices, far_indices, strict=True)]

    def get_agent_metadata(self) -> bytes:
        return b"an agent"


@pytest.fixture(autouse=True)
def stand_ins() -> Iterator[None]:
    with patch.multiple(nixl_lanes, nixl_agent=lambda *_: StandIn(written=[]), nixl_agent_config=MagicMock()):
        yield


def node(lanes: int, object_bytes: int) -> tuple[nixl_lanes.Lanes, list[nixl_lanes.Place]]:
    """A node's lanes, and the places of its eight objects' pieces."""
    with patch.dict("os.environ", {nixl_lanes.VARIABLE: str(lanes)}):
        made = nixl_lanes.Lanes(["UCX"])
    return made, made.get_xfer_descs([(n * object_bytes, object_bytes, 0) for n in range(8)], "cpu")


def write(
    near_lanes: int, far_lanes: int, object_bytes: int, near: Sequence[int], far: Sequence[int]
) -> list[list[Any]]:
    """What each lane of the owner writes, of these objects into those."""
    (owner, sources), (peer, targets) = node(near_lanes, object_bytes), node(far_lanes, object_bytes)
    name = owner.add_remote_agent(peer.get_agent_metadata())
    handles = owner.prep_xfer_dlist("", sources), owner.prep_xfer_dlist(name, targets)
    owner.make_prepped_xfer("WRITE", handles[0], near, handles[1], far)
    return [agent.written for agent in owner._agents]


def test_one_object_keeps_every_lane_busy() -> None:
    assert [len(written) for written in write(4, 8, 32 * MIB, [3], [5])] == [2, 2, 2, 2]


def test_a_small_object_is_not_cut_into_crumbs() -> None:
    assert [len(written) for written in write(4, 4, MIB // 2, [0], [0])] == [1, 1, 0, 0]


@given(
    lanes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    object_bytes=st.integers(1, 9 * MIB),
    near=st.permutations(range(8)),
    far=st.permutations(range(8)),
    count=st.integers(1, 8),
)
def test_every_byte_of_every_object_goes_where_it_belongs(
    lanes: tuple[int, int], object_bytes: int, near: list[int], far: list[int], count: int
) -> None:
    written = sorted(chain(*write(*lanes, object_bytes, near[:count], far[:count])))
    place_of = dict(zip(near, far, strict=True))
    reached = {number: number * object_bytes for number in near[:count]}
    for (source, size, _), (target, target_size, _) in written:
        number = source // object_bytes
        assert (source, size) == (reached[number], target_size)
        assert target == place_of[number] * object_bytes + source % object_bytes
        reached[number] += size
    assert reached == {number: (number + 1) * object_bytes for number in near[:count]}


@pytest.mark.parametrize(
    "metadata",
    [
        msgspec.msgpack.encode([b"one", b"two"]),  # before objects were cut
        msgspec.msgpack.encode(nixl_lanes.Introduction(4, [b"one"])),
    ],
)
def test_a_peer_that_cuts_otherwise_is_not_let_in(metadata: bytes) -> None:
    made, _ = node(2, 32 * MIB)
    with pytest.raises((ValueError, msgspec.ValidationError)):
        made.add_remote_agent(metadata)


@pytest.mark.slow
def test_an_unpatched_node_uses_one_connection(probe: Probe) -> None:
    result = probe("lanes", PATCH, without(PATCH))
    assert result.returncode == 1
    assert "KV should travel on 3 connections and does on 1." in result.stderr
