"""Probe of same-rank: the controller answers a rank with peers of that rank only."""

from __future__ import annotations

import time

from probes import ProbeError
from probes.controller import Ports, free_ports, request, running_controller
from probes.stand_in import StandIn

KEYS = [11, 12, 13]
ADMITTED_WITHIN_S = 10.0


def probe() -> None:
    """Raises ProbeError unless ranks 0 and 1 are sent to ranks 0 and 1 of the owner, and rank 2 to nobody."""
    ports = free_ports()
    with running_controller(ports):
        for rank in (0, 1):
            _register_with_keys(ports, rank)
        for rank, expected in ((0, "peer:0"), (1, "peer:1"), (2, "")):
            found = _answer(ports, rank)
            if found != expected:
                raise ProbeError(f"Rank {rank} should be sent to '{expected}', but is to '{found}'.")


def _register_with_keys(ports: Ports, rank: int) -> None:
    owner = StandIn(ports, "owner", rank, f"peer:{rank}")
    owner.register()
    owner.report(KEYS)


def _answer(ports: Ports, rank: int) -> str:
    """The address that a rank of another instance is sent to, once the keys are admitted; empty if none."""
    message = {"type": "BatchedP2PLookupMsg", "hashes": KEYS, "instance_id": "asker", "worker_id": rank}
    deadline = time.monotonic() + (ADMITTED_WITHIN_S if rank < 2 else 0)
    while True:
        answer = request(ports.reply, message)
        url = answer["layout_info"][0][3] if isinstance(answer, dict) and "layout_info" in answer else ""
        if url or time.monotonic() >= deadline:
            return str(url)
        time.sleep(0.2)
