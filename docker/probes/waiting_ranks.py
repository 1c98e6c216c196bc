"""Probe of waiting-ranks: who waits for another process leaves its core to others."""

from __future__ import annotations

import resource

from probes import ProbeError

WAITS = 100


def probe() -> None:
    """Raises ProbeError unless each wait gives the core up, which to yield it does not."""
    from vllm.distributed.utils import sched_yield

    began = _given_up()
    for _ in range(WAITS):
        sched_yield()
    if (given_up := _given_up() - began) < WAITS:
        raise ProbeError(
            f"Who waits {WAITS} times should give its core up as often, but did {given_up} times."
        )


def _given_up() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
