"""Probe of worker-synced: the controller says of each worker whether it knows all its keys."""

from __future__ import annotations

import json
import time

from probes import ProbeError
from probes.controller import Ports, get
from probes.stand_in import registered

KEYS = (1, 2, 3)
WITHIN_S = 10.0
QUESTIONS = ("", "?instance_id=stand-in", "?instance_id=stand-in&worker_id=0")


def probe() -> None:
    """Raises ProbeError unless a worker is not synchronised, and is once it has sent its keys."""
    with registered() as worker:
        _require(worker.ports, synced=False)
        worker.begin_sync(KEYS)
        worker.end_sync(KEYS)
        _require(worker.ports, synced=True)


def _require(ports: Ports, *, synced: bool) -> None:
    deadline = time.monotonic() + WITHIN_S
    for question in QUESTIONS:
        while (found := _synced(ports, question)) is not synced:
            if time.monotonic() > deadline:
                raise ProbeError(f"GET /controller/workers{question} should say {synced}, but says {found}.")
            time.sleep(0.2)


def _synced(ports: Ports, question: str) -> object:
    with get(ports.http, f"/controller/workers{question}") as answer:
        found = json.load(answer)
    workers = found.get("workers", [found])  # of one worker the answer is that worker
    return workers[0].get("synced") if workers else "no worker"
