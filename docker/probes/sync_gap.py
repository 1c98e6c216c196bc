"""Probe of sync-gap: a worker of which a message was lost is asked for all its keys."""

from __future__ import annotations

from probes import ProbeError, happens
from probes.stand_in import registered

KEYS = (1, 2, 3)


def probe() -> None:
    """Raises ProbeError unless a worker that leaves a number out is asked for its keys, and not before."""
    with registered() as worker:
        worker.begin_sync(KEYS)
        worker.end_sync(KEYS)
        worker.report([4], first=1)
        worker.report([5], first=2)
        if not happens(lambda: not worker.is_asked_for_its_keys()):
            raise ProbeError("While no message is lost a worker should not be asked for its keys.")
        worker.report([7], first=4)
        if not happens(worker.is_asked_for_its_keys):
            raise ProbeError("After a lost message a worker should be asked for its keys.")
