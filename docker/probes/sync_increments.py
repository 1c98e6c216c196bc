"""Probe of sync-increments: what a worker reports while it sends all its keys is known afterwards."""

from __future__ import annotations

import time

from probes import ProbeError
from probes.node import synced_workers
from probes.stand_in import registered

OLD, NEW = (1, 2), (3,)
WITHIN_S = 10.0


def probe() -> None:
    """Raises ProbeError unless a key that is reported during a synchronisation is known, as all others."""
    with registered() as worker:
        worker.begin_sync(OLD)
        worker.report(NEW)
        worker.end_sync(OLD)
        deadline = time.monotonic() + WITHIN_S
        while (found := synced_workers(worker.ports)["stand-in"]) != (True, len(OLD + NEW)):
            if time.monotonic() > deadline:
                raise ProbeError(f"{len(OLD + NEW)} keys should be known, but the controller has {found}.")
            time.sleep(0.2)
