# SPDX-License-Identifier: Apache-2.0
"""Chunks of KV as bytes of a message, read back without running anything that they bring."""

from __future__ import annotations

import io

import torch


def to_bytes(chunks: list[torch.Tensor]) -> bytes:
    """The chunks as one message."""
    buffer = io.BytesIO()
    torch.save(chunks, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> list[torch.Tensor]:
    """The chunks of a message; an exception for whatever is not tensors alone."""
    chunks: list[torch.Tensor] = torch.load(io.BytesIO(data), weights_only=True)
    return chunks
