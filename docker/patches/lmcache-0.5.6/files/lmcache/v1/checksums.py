# SPDX-License-Identifier: Apache-2.0
"""Checksums of KV: made when a chunk is stored, compared when it was pulled, both beside other work."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import blake3
import prometheus_client
import torch
from lmcache.logging import init_logger

if TYPE_CHECKING:
    from lmcache.v1.memory_management import MemoryObj

logger = init_logger(__name__)

SIZE = 16  # bytes
LOG_INTERVAL_S = 60.0
MISMATCHES = prometheus_client.Counter(
    "lmcache:checksum_mismatches",
    "Chunks that a peer has written and that were not used, since their bytes are not those it stored",
    ["peer"],
)
_threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="checksum")
_logged_at = float("-inf")


def begin(chunk: MemoryObj) -> None:
    """Have the checksum made of a chunk that was just stored."""
    chunk.checksum = _threads.submit(_of, chunk)


async def made(chunks: list[MemoryObj]) -> list[bytes]:
    """The checksums of chunks when they were stored; empty where none was made."""
    begun: list[Future[bytes] | None] = [getattr(chunk, "checksum", None) for chunk in chunks]
    return [b"" if one is None else await asyncio.wrap_future(one) for one in begun]


async def num_sound(chunks: list[MemoryObj], told: list[bytes], peer: str) -> int:
    """How many of the first chunks have the checksums that their owner told."""
    loop = asyncio.get_running_loop()
    found = await asyncio.gather(*(loop.run_in_executor(_threads, _of, chunk) for chunk in chunks))
    wrong = [n for n, checksum in enumerate(found) if checksum not in told[n : n + 1]]
    if not wrong:
        return len(chunks)
    MISMATCHES.labels(peer).inc(len(wrong))
    _log(peer, len(wrong), len(chunks), any(told))
    return wrong[0]


def _of(chunk: MemoryObj) -> bytes:
    """BLAKE3 of its bytes, which lets other threads run meanwhile."""
    data = chunk.raw_data.view(-1).view(torch.uint8)[: chunk.get_size()]
    digest: bytes = blake3.blake3(data.numpy()).digest(SIZE)
    return digest


def _log(peer: str, wrong: int, of: int, told: bool) -> None:
    global _logged_at
    if time.monotonic() - _logged_at < LOG_INTERVAL_S:
        return
    _logged_at = time.monotonic()
    why = "are not what it stored" if told else "came without a checksum: KV_CHECKSUM must be on there too"
    logger.warning("%d of %d chunks pulled from %s %s; they are computed", wrong, of, peer, why)
