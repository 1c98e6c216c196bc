"""lanes: KV comes over several connections, each object over one of them; unpatched, all over one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmcache.v1.transfer_channel import nixl_lanes


class StandIn(MagicMock):
    """A NIXL agent that keeps what it was told to write, as pairs of a place near and one far."""

    def get_agent_metadata(self) -> bytes:
        return b"an agent"

    def prep_xfer_dlist(self, _: bytes | str, places: Any, **__: Any) -> Any:
        return places

    def make_prepped_xfer(
        self, _: str, near: Any, near_indices: list[int], far: Any, far_indices: Any
    ) -> None:
        self.written = [(near[a], far[b]) for a, b in zip(near_indices, far_indices, strict=True)]


@pytest.fixture(autouse=True)
def stand_ins() -> Iterator[None]:
    with patch.multiple(nixl_lanes, nixl_agent=lambda *_: StandIn(written=[]), nixl_agent_config=MagicMock()):
        yield


def write(near_lanes: int, far_lanes: int, near: Sequence[int], far: Sequence[int]) -> list[list[Any]]:
    """What each lane of the owner writes, of its objects at these places into the peer's at those."""
    owner, peer = node(near_lanes), node(far_lanes)
    name = owner.add_remote_agent(peer.get_agent_metadata())
    sources = owner.prep_xfer_dlist("", [f"near {number}" for number in range(8)])
    targets = owner.prep_xfer_dlist(name, [f"far {number}" for number in range(8)])
    owner.make_prepped_xfer("WRITE", sources, near, targets, far)
    return [agent.written for agent in owner._agents]


def node(lanes: int) -> nixl_lanes.Lanes:
    with patch.dict("os.environ", {nixl_lanes.VARIABLE: str(lanes)}):
        return nixl_lanes.Lanes(["UCX"])


def test_a_peer_with_fewer_lanes_is_written_to_on_those_it_has() -> None:
    written = write(4, 2, range(8), range(8))
    assert [len(lane) for lane in written] == [4, 4, 0, 0]


@given(
    lanes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    near=st.permutations(range(8)),
    far=st.permutations(range(8)),
    count=st.integers(1, 8),
)
def test_every_object_goes_where_it_belongs_and_the_lanes_share_them(
    lanes: tuple[int, int], near: list[int], far: list[int], count: int
) -> None:
    written = write(*lanes, near[:count], far[:count])
    expected = [(f"near {a}", f"far {b}") for a, b in zip(near[:count], far[:count], strict=True)]
    assert sorted(chain(*written)) == sorted(expected)
    used = [len(lane) for lane in written if lane]
    assert len(used) == min(*lanes, count)
    assert max(used) - min(used) <= 1
