"""A slower, longer, lossier cable: frames pass between two devices late, at a limited rate, or not at all.

`tc netem` does this where the kernel has it; many have not. Frames travel with their virtio header
(PACKET_VNET_HDR), so that the kernel's 64 KiB segments need not be cut up and Python keeps pace.

    python -m tests.rig.slow_link DEVICE DEVICE --rate BYTES_A_SECOND --delay SECONDS --loss SHARE --seed N
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field

import click

ETH_P_ALL = 0x0003
# Source: linux/if_packet.h
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 1, 15, 23
PACKET_MR_PROMISC = 1
FRAME_BYTES, SOCKET_BYTES, QUEUE_BYTES = 1 << 17, 1 << 24, 1 << 23


@dataclass
class Direction:
    """One way of the cable; bytes a second (0: no limit), seconds, and the share of frames lost."""

    source: socket.socket
    sink: socket.socket
    rate: float
    delay: float
    loss: float
    dice: random.Random
    free_at: float = 0.0
    queued: int = 0
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, now: float) -> None:
        """Read what has come, and decide when or whether it arrives."""
        while True:
            try:
                frame = self.source.recv(FRAME_BYTES)
            except BlockingIOError:
                return
            if self.queued + len(frame) > QUEUE_BYTES or self.dice.random() < self.loss:
                continue
            self.free_at = max(now, self.free_at) + (len(frame) / self.rate if self.rate else 0.0)
            self.waiting.append((self.free_at + self.delay, frame))
            self.queued += len(frame)

    def give(self, now: float) -> None:
        """Hand on what is due."""
        while self.waiting and self.waiting[0][0] <= now:
            _, frame = self.waiting.popleft()
            self.queued -= len(frame)
            with contextlib.suppress(OSError):  # a full device drops, as a real one would
                self.sink.send(frame)

    def due(self) -> float:
        return self.waiting[0][0] if self.waiting else float("inf")


def open_device(name: str) -> socket.socket:
    """A raw socket that sees every frame that comes in on a device, and none that goes out."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    raw.bind((name, ETH_P_ALL))
    membership = struct.pack("iHH8s", socket.if_nametoindex(name), PACKET_MR_PROMISC, 0, b"")
    raw.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
    raw.setblocking(False)
    return raw


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--rate", type=float, default=0.0)
@click.option("--delay", type=float, default=0.0)
@click.option("--loss", type=float, default=0.0)
@click.option("--seed", type=int, default=1)
def main(first: str, second: str, rate: float, delay: float, loss: float, seed: int) -> None:
    one, other = open_device(first), open_device(second)
    dice = random.Random(seed)
    ways = (Direction(one, other, rate, delay, loss, dice), Direction(other, one, rate, delay, loss, dice))
    while True:
        wait = max(0.0, min(way.due() for way in ways) - time.monotonic())
        ready, _, _ = select.select([one, other], [], [], min(wait, 1.0))
        now = time.monotonic()
        for way in ways:
            if way.source in ready:
                way.take(now)
            way.give(now)


if __name__ == "__main__":
    main()
