"""Probe of sync-asked: a worker that comes when all others are synchronised is asked for its keys, too."""

from __future__ import annotations

from probes import ProbeError, happens
from probes.controller import free_ports, running_controller
from probes.stand_in import StandIn

KEYS = (1, 2, 3)


def probe() -> None:
    """Raises ProbeError unless each worker is asked until it has sent its keys, and no longer."""
    ports = free_ports()
    with running_controller(ports):
        for worker in (StandIn(ports, "first"), StandIn(ports, "second")):
            worker.register()
            if not worker.is_asked_for_its_keys():
                raise ProbeError(f"The {worker.instance} worker should be asked for its keys.")
            worker.begin_sync(KEYS)
            worker.end_sync(KEYS)
            worker.ask_for_sync_status()
            if not happens(lambda worker=worker: not worker.is_asked_for_its_keys()):  # type: ignore[misc]
                raise ProbeError(
                    f"The {worker.instance} worker has sent its keys and should not be asked again."
                )
