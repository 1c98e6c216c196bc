"""What a stranger sends, with SHARING=controller and with SHARING=multiprocess."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvshare.config.settings import CONTROLLER, MULTIPROCESS
from tests.rig.network import DECODE, OPERATOR, PREFILL
from tests.scenarios.under_faults.machines import Socket
from tests.scenarios.under_faults.traffic import CACHES

STRANGER, PREFILL_INSTANCE, DECODE_INSTANCE = "stranger", "lmcache_instance_1", "lmcache_instance_2"
MADE = "/tmp/kvshare-made-by-a-stranger"


class WritesAFile:
    """Unpickled, it makes a folder."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (MADE,)


@dataclass(frozen=True)
class Attempt:
    """What a stranger sends, and what he is answered where there is no key: None by who only takes."""

    what: str
    type: str
    answer: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> bytes:
        return msgspec.msgpack.encode({"type": self.type, **self.fields})


@dataclass(frozen=True)
class Order:
    """A request of a cache server's, by its number; it does not start without a key."""

    what: str
    number: int
    answer: str | None = None

    @property
    def message(self) -> bytes:
        return msgspec.msgpack.encode(self.number)


@dataclass(frozen=True)
class Call:
    """What is read or ordered over HTTP; ``owner`` counts it."""

    owner: str
    port: int
    path: str
    body: dict[str, Any] | None = None

    @property
    def base(self) -> str:
        host = DECODE if self.owner == "decode" else PREFILL
        return f"http://{host.address}:{self.port}"


Messages = Mapping[str, Sequence[Attempt | Order]]  # by the names of ZeroMQ's sockets


def of_worker(instance: str, **fields: Any) -> dict[str, Any]:
    return {"instance_id": instance, "worker_id": 0, **fields}


PLACE, URL = {"ip": OPERATOR.address, "port": 1}, f"{OPERATOR.address}:1"
IN_MEMORY = "LocalCPUBackend"
OF_CONTROLLER: Messages = {
    "reply": (
        Attempt("register", "RegisterMsg", "RegisterRetMsg", of_worker(STRANGER, **PLACE)),
        Attempt(
            "look up", "BatchedP2PLookupMsg", "BatchedP2PLookupRetMsg", of_worker(STRANGER, hashes=[1])
        ),
    ),
    "heartbeat": (
        Attempt("take a worker's place", "HeartbeatMsg", "HeartbeatRetMsg", of_worker(STRANGER, **PLACE)),
    ),
    "pull": (
        Attempt(
            "claim", "BatchedKVOperationMsg", None,
            of_worker(
                STRANGER, location=IN_MEMORY, operations=[{"op_type": "admit", "key": 1, "seq_num": 0}]
            ),
        ),
        Attempt(
            "withdraw", "DeRegisterMsg", None, of_worker(DECODE_INSTANCE, ip=DECODE.address, port=8501)
        ),
    ),
    "worker": (
        Attempt(
            "move", "MoveWorkerMsg", "MoveWorkerRetMsg",
            {
                "worker_event_id": "e", "old_position": IN_MEMORY, "new_position": [URL, IN_MEMORY],
                "tokens": list(range(256)),
            },
        ),
        Attempt(
            "order", "ClearWorkerMsg", "ClearWorkerRetMsg", {"worker_event_id": "e", "location": IN_MEMORY}
        ),
    ),
    "p2p_init": (
        Attempt("be introduced", "P2PInitSideMsg", "P2PInitSideRetMsg"),
        Attempt(
            "run code", "NixlMemRegRequest", "",  # no key is needed for it to fail: patch descriptors
            {
                "remote_agent_name": b"nobody", "local_id": URL,
                "local_xfer_dlist_bytes": pickle.dumps(WritesAFile()),
            },
        ),
    ),
    "p2p_lookup": (
        # That much he is told; KV itself goes to who was introduced.
        Attempt(
            "pull", "BatchedLookupAndGetMsg", "P2PErrorMsg",
            {"lookup_id": "1", "receiver_id": STRANGER, "keys": [], "mem_indexes": []},
        ),
        Attempt(
            "push", "BatchedLookupAndPutMsg", "BatchedLookupAndPutRetMsg",
            {"sender_id": STRANGER, "keys": [], "offsets": [], "mem_indexes": []},
        ),
    ),
}  # fmt: skip
# Of prefill, which no other attempt takes away.
CLEARED = {"instance_id": PREFILL_INSTANCE, "location": IN_MEMORY}
OF_CACHE_SERVERS: Messages = {
    # Numbers of LMCache's transport/zmq_impl/wire.py.
    "requests": (Order("clear", 20), Order("ask the size of chunks", 21), Order("look up", 29)),
    "p2p": (
        Attempt("be introduced", "InitReq", fields={"agent_name": STRANGER, "agent_meta": b"none"}),
        Attempt(
            "run code", "MemRegReq",
            fields={
                "sender_agent_name": STRANGER, "sender_advertise_url": URL,
                "xfer_descs": pickle.dumps(WritesAFile()),
            },
        ),
    ),
}  # fmt: skip
MYSELF = {"instance_id": STRANGER, "ip": OPERATOR.address, "http_port": 1, "p2p_advertised_url": URL}


@dataclass(frozen=True)
class Attempts:
    """All that a stranger tries, by the names of ZeroMQ's sockets, and over HTTP."""

    messages: Messages
    over_http: Sequence[Call]

    def of(self, sockets: Sequence[Socket]) -> Iterator[tuple[Socket, Attempt | Order]]:
        return ((one, attempt) for one in sockets for attempt in self.messages[one.name])


BY_SHARING = {
    CONTROLLER: Attempts(
        OF_CONTROLLER,
        (
            *(
                Call("controller", 9000, path)
                for path in ("/", "/env", "/docs", "/metrics", "/controller/workers")
            ),
            Call("controller", 9000, "/lookup", {"tokens": list(range(256))}),
            Call("controller", 9000, "/clear", CLEARED),
        ),
    ),
    MULTIPROCESS: Attempts(
        OF_CACHE_SERVERS,
        (
            *(Call("controller", 9000, path) for path in ("/docs", "/metrics", "/instances")),
            Call("controller", 9000, "/instances", MYSELF),
            *(
                Call(host.name, port, path)
                for host, port in CACHES.items()
                for path in ("/", "/status", "/metrics", "/config", "/cache/objects")
            ),
            *(Call(host.name, port, "/cache/clear", {}) for host, port in CACHES.items()),
        ),
    ),
}
