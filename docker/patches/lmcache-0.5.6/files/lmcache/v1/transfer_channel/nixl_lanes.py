# SPDX-License-Identifier: Apache-2.0
"""Several NIXL agents that look like one: a transfer's objects are dealt out to all of them.

Each agent has a connection and a thread of its own at both ends, and one of either fills only so much of a
network. NIXL's `num_threads` adds senders alone: at the receiver one thread would still take it all.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
from lmcache.logging import init_logger
from nixl._api import nixl_agent, nixl_agent_config

logger = init_logger(__name__)

VARIABLE = "KVSHARE_LANES"  # how many; a peer that has fewer is sent to on those that it has


class Lanes:
    """What LMCache's channel uses of a NIXL agent; a handle is a list, an item a lane."""

    def __init__(self, backends: list[str]) -> None:
        count = int(os.environ.get(VARIABLE) or 1)
        config = nixl_agent_config(backends=backends)
        self._agents = [nixl_agent(str(uuid.uuid4()), config) for _ in range(count)]
        self._peers: dict[bytes | str, list[bytes]] = {}  # names of a peer's agents, by the first one's
        # Descriptors are addresses, no matter whose.
        self.get_reg_descs = self._agents[0].get_reg_descs
        self.get_xfer_descs = self._agents[0].get_xfer_descs
        self.get_serialized_descs = self._agents[0].get_serialized_descs
        self.deserialize_descs = self._agents[0].deserialize_descs
        logger.info("KV travels on %d lane(s)", count)

    def register_memory(self, descriptors: Any) -> None:
        for agent in self._agents:
            agent.register_memory(descriptors)

    def deregister_memory(self, descriptors: Any) -> None:
        for agent in self._agents:
            agent.deregister_memory(descriptors)

    def get_agent_metadata(self) -> bytes:
        return msgspec.msgpack.encode([agent.get_agent_metadata() for agent in self._agents])

    def add_remote_agent(self, metadata: bytes) -> bytes:
        theirs = msgspec.msgpack.decode(metadata, type=list[bytes])
        names: list[bytes] = [agent.add_remote_agent(one) for agent, one in self._with(theirs)]
        self._peers[names[0]] = names
        return names[0]

    def remove_remote_agent(self, name: bytes) -> None:
        with ExitStack() as each:  # also those after one that fails
            for agent, theirs in self._with(self._peers.pop(name)):
                each.callback(agent.remove_remote_agent, theirs)

    def prep_xfer_dlist(self, name: bytes | str, places: Any, mem_type: str | None = None) -> list[Any]:
        names = self._peers[name] if name else [""] * len(self._agents)
        return [
            agent.prep_xfer_dlist(theirs, places, mem_type=mem_type) for agent, theirs in self._with(names)
        ]

    def release_dlist_handle(self, handles: list[Any]) -> None:
        for agent, handle in self._with(handles):
            agent.release_dlist_handle(handle)

    def make_prepped_xfer(
        self, operation: str, near: list[Any], near_indices: Any, far: list[Any], far_indices: Any
    ) -> list[Any]:
        lanes = min(len(near), len(far), len(near_indices))
        return [
            self._agents[lane].make_prepped_xfer(
                operation, near[lane], near_indices[lane::lanes], far[lane], far_indices[lane::lanes]
            )
            for lane in range(lanes)
        ]

    def transfer(self, handles: list[Any]) -> str:
        return _together([agent.transfer(handle) for agent, handle in self._with(handles)])

    def check_xfer_state(self, handles: list[Any]) -> str:
        return _together([agent.check_xfer_state(handle) for agent, handle in self._with(handles)])

    def _with(self, items: list[Any]) -> Iterator[tuple[Any, Any]]:
        """The agents, each with its item, for as many as there are of both."""
        return zip(self._agents, items, strict=False)


def _together(states: list[str]) -> str:
    """A transfer has failed as soon as a part of it has, and is done when all of it is."""
    return next((state for state in ("ERR", "PROC") if state in states), "DONE")
