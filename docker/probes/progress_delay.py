"""Probe of progress-delay: an idle NIXL agent uses no CPU time to speak of."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from pathlib import Path

from probes import ProbeError

SAMPLES, INTERVAL_S = 40, 0.05
LIMIT = 0.5  # of the samples; a thread that spins wants a core in all of them, even where it gets none


def probe() -> None:
    """Create an agent and do nothing; raises ProbeError if a thread of its wants a core all the time."""
    os.environ.setdefault("UCX_TLS", "tcp")
    from nixl._api import nixl_agent, nixl_agent_config

    agent = nixl_agent("kvshare-probe", nixl_agent_config(backends=["UCX"]))
    runnable: Counter[str] = Counter()
    for _ in range(SAMPLES):
        time.sleep(INTERVAL_S)
        runnable.update(_runnable_threads())
    del agent
    share = max(runnable.values(), default=0) / SAMPLES
    if share > LIMIT:
        raise ProbeError(
            f"An idle NIXL agent should leave the CPU alone, but a thread wanted it {share:.0%} of the time."
        )


def _runnable_threads() -> set[str]:
    """Ids of this process's other threads that run, or would if there were a core."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it ended
            state = (task / "stat").read_text().rpartition(") ")[2][0]
            if state == "R" and task.name != str(threading.get_native_id()):
                found.add(task.name)
    return found
