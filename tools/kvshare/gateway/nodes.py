"""The servers as the gateway knows them: whether they answer, how busy they are, and what they were sent."""

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

BLOCKS_KEPT = 262_144  # a node, 64 MiB of prompts, which take some 30 MiB here
SLACK = 2  # requests that a node may have more than the least busy one, for what it holds
WATCH_S, WATCH_TIMEOUT_S = 1.0, 3.0
LATE_CHECKS = 3  # a busy server may be late once


@dataclass(eq=False)
class Node:
    """One vLLM server."""

    name: str
    url: str
    up: bool = True
    drained: bool = False
    running: int = 0
    coming: int = 0  # requests that prefill computes first
    sent: int = 0
    late: int = 0
    held: OrderedDict[int, None] = field(default_factory=OrderedDict)

    @property
    def place(self) -> str:
        """Its host and port."""
        return self.url.removeprefix("http://")

    @property
    def usable(self) -> bool:
        """Whether it is sent new requests."""
        return self.up and not self.drained

    @property
    def load(self) -> int:
        """How many requests it has, or will have."""
        return self.running + self.coming

    def holds(self, blocks: Sequence[int]) -> int:
        """Return how many of a prompt's first blocks it was sent."""
        return next((n for n, block in enumerate(blocks) if block not in self.held), len(blocks))

    def keep(self, blocks: Sequence[int]) -> None:
        """Remember a prompt, and forget those of long ago."""
        for block in reversed(blocks):  # a prompt's beginning is forgotten last
            self.held[block] = None
            self.held.move_to_end(block)
        while len(self.held) > BLOCKS_KEPT:
            self.held.popitem(last=False)

    def lost(self) -> None:
        """Note that it is gone, and its cache with it."""
        self.up = False
        self.held.clear()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request while it runs there."""
        self.running += 1
        self.sent += 1
        try:
            yield
        finally:
            self.running -= 1

    @contextmanager
    def awaiting(self) -> Iterator[None]:
        """Count a request while it is about to run there."""
        self.coming += 1
        try:
            yield
        finally:
            self.coming -= 1


@dataclass
class Pool:
    """All servers: decode nodes answer, and prefill where none of them is left."""

    prefill: Node
    decodes: tuple[Node, ...]
    drained: Path  # a file there named as a node's place: it gets no new requests

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every server."""
        return (self.prefill, *self.decodes)

    def pick(self, blocks: Sequence[int], tried: Collection[Node] = ()) -> Node | None:
        """Return the server for a prompt, which was not tried yet: load first, then what it holds.

        Where none is known to answer, those that do not are tried: what is known is a second old.
        """
        left = [node for node in self.nodes if node not in tried]
        usable = [node for node in left if node.usable] or left
        decodes = [node for node in usable if node is not self.prefill]
        if not decodes:
            return usable[0] if usable else None
        most = min(node.load for node in decodes)
        most += SLACK + most // 4
        return min(decodes, key=lambda n: (n.load > most, -n.holds(blocks), n.load, n.sent))

    async def watch(self, session: aiohttp.ClientSession) -> None:
        """Look at every server once a second, for good."""
        while True:
            await asyncio.gather(*(self._look(node, session) for node in self.nodes))
            await asyncio.sleep(WATCH_S)

    async def _look(self, node: Node, session: aiohttp.ClientSession) -> None:
        was, mark = (node.up, node.drained), self.drained / node.place
        timeout = aiohttp.ClientTimeout(total=WATCH_TIMEOUT_S)
        try:
            async with session.get(f"{node.url}/health", timeout=timeout) as answer:
                node.up, node.late = answer.status == 200, 0
        except TimeoutError:
            node.late += 1
            node.up = node.up and node.late < LATE_CHECKS
        except (aiohttp.ClientError, OSError):
            node.up = False
        if not node.up:
            node.lost()
            with suppress(OSError):
                mark.unlink(missing_ok=True)  # drained and gone: when it is back, it is back
        node.drained = mark.exists()
        if was != (node.up, node.drained):
            state = "drained" if node.drained else "up" if node.up else "down"
            print(f"gateway: {node.name} ({node.url}) is {state}", flush=True)
