"""Stands in for a worker that tells the controller what it holds, more and more, and never that this was all.

With the cluster's key; arguments: the controller's REPLY and PULL port, each as HOST:PORT.
"""

import itertools
import sys
import time

import msgspec
import zmq
from lmcache.v1.cache_controller.message import (
    FullSyncBatchMsg,
    FullSyncStartMsg,
    HeartbeatMsg,
    MsgBase,
    RegisterMsg,
)
from lmcache.v1.cluster_key import secure

NAME, RANK, SYNC = "lmcache_instance_9", 0, "endless"
NAME_BYTES, PAUSE_S, HEARTBEAT_BATCHES = 1_000_000, 0.1, 30
ANSWERED_MS = 10_000


def connected(context: "zmq.Context[zmq.Socket[bytes]]", role: int, address: str) -> "zmq.Socket[bytes]":
    client = context.socket(role)
    client.setsockopt(zmq.RCVTIMEO, ANSWERED_MS)
    client.setsockopt(zmq.LINGER, 0)
    secure(client, listens=False, address=address)
    client.connect(f"tcp://{address}")
    return client


def location(number: int) -> str:
    """A further place where it holds something; its long name is what the controller keeps."""
    return f"place {number} ".ljust(NAME_BYTES, "x")


def main(reply: str, pull: str) -> None:
    context = zmq.Context()
    asks, tells = connected(context, zmq.DEALER, reply), connected(context, zmq.PUSH, pull)

    def ask(message: MsgBase) -> None:
        asks.send_multipart([b"", msgspec.msgpack.encode(message)])
        print(asks.recv_multipart()[-1], flush=True)

    here = (NAME, RANK, "127.0.0.1", 9)
    ask(RegisterMsg(*here))
    ask(FullSyncStartMsg(NAME, RANK, "place", SYNC, total_keys=0, batch_count=0))
    for number in itertools.count():
        if number % HEARTBEAT_BATCHES == 0:
            ask(HeartbeatMsg(*here))
        batch = FullSyncBatchMsg(NAME, RANK, location(number), SYNC, number, [number])
        tells.send(msgspec.msgpack.encode(batch))
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
