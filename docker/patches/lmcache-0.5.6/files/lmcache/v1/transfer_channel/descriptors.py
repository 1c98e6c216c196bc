# SPDX-License-Identifier: Apache-2.0
"""Where a node's pages lie, as numbers: NIXL's own form is a pickle, which runs what its sender likes."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

COLUMNS = 3  # address, bytes, device


class Descriptors(msgspec.Struct, frozen=True):
    """Rows of 64-bit little-endian numbers, one after the other."""

    memory: Literal["DRAM", "VRAM"]
    rows: bytes


def dump(descriptors: Any) -> bytes:
    """What a peer is sent of a NIXL transfer list."""
    rows = [descriptors[index] for index in range(descriptors.descCount())]
    memory = descriptors.getType().name.removesuffix("_SEG")
    return msgspec.msgpack.encode(Descriptors(memory, np.array(rows, dtype="<u8").tobytes()))


def load(agent: Any, data: bytes) -> Any:
    """The NIXL transfer list that a peer sent. Raises msgspec.ValidationError and ValueError."""
    found = msgspec.msgpack.decode(data, type=Descriptors)
    rows = np.frombuffer(found.rows, dtype="<u8").reshape(-1, COLUMNS)
    if not len(rows):
        raise ValueError("a peer should have pages, and names none")
    return agent.get_xfer_descs(rows, mem_type=found.memory)
