"""A stand-in for a worker: what LMCache's worker tells its controller, one message after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from probes.controller import Ports, free_ports, request, running_controller
from probes.noise import send

LOCATION = "LocalCPUBackend"


@dataclass(frozen=True)
class StandIn:
    """A worker of an instance; peers would connect to it at ``peer_init_url``."""

    ports: Ports
    instance: str
    worker_id: int = 0
    peer_init_url: str | None = None

    def register(self) -> object:
        return request(self.ports.reply, self._says("RegisterMsg", self._place()))

    def beat(self) -> Any:
        """The controller's answer to a heartbeat."""
        return request(self.ports.heartbeat, self._says("HeartbeatMsg", self._place()))

    def is_asked_for_its_keys(self) -> bool:
        return bool(self.beat()["commands"])

    def report(self, keys: Sequence[int], first: int = 0) -> None:
        """Report keys as stored, in a message whose numbers begin with ``first``."""
        operations = [
            {"op_type": "admit", "key": key, "seq_num": number} for number, key in enumerate(keys, first)
        ]
        self._push("BatchedKVOperationMsg", {"operations": operations})

    def begin_sync(self, keys: Sequence[int]) -> object:
        expected = {"location": LOCATION, "sync_id": "s", "total_keys": len(keys), "batch_count": 1}
        return request(self.ports.reply, self._says("FullSyncStartMsg", expected))

    def end_sync(self, keys: Sequence[int]) -> None:
        self._push("FullSyncBatchMsg", {"sync_id": "s", "batch_id": 0, "keys": list(keys)})
        self._push("FullSyncEndMsg", {"sync_id": "s", "actual_total_keys": len(keys)})

    def ask_for_sync_status(self) -> object:
        return request(self.ports.reply, self._says("FullSyncStatusMsg", {"sync_id": "s"}))

    def _place(self) -> dict[str, object]:
        return {"ip": "127.0.0.1", "port": 1 + self.worker_id, "peer_init_url": self.peer_init_url}

    def _push(self, kind: str, content: Mapping[str, object]) -> None:
        message = self._says(kind, {"location": LOCATION, **content})
        send(self.ports.pull, zmq.PUSH, [msgspec.msgpack.encode(message)])

    def _says(self, kind: str, content: Mapping[str, object]) -> dict[str, object]:
        return {"type": kind, "instance_id": self.instance, "worker_id": self.worker_id, **content}


@contextmanager
def registered() -> Iterator[StandIn]:
    """A stand-in that a running controller knows."""
    ports = free_ports()
    with running_controller(ports):
        worker = StandIn(ports, "stand-in")
        worker.register()
        yield worker
