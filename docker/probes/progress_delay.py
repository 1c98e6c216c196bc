"""Probe of progress-delay: an idle NIXL agent uses no CPU time to speak of."""

from __future__ import annotations

import os
import time

from probes import ProbeError

IDLE_S = 2.0
LIMIT = 0.05  # of a core; a spinning thread takes all it gets (0.94 was seen), a patched one 0.005


def probe() -> None:
    """Create an agent and do nothing; raises ProbeError if that keeps a core busy."""
    os.environ.setdefault("UCX_TLS", "tcp")
    from nixl._api import nixl_agent, nixl_agent_config

    agent = nixl_agent("kvshare-probe", nixl_agent_config(backends=["UCX"]))
    started, used = time.monotonic(), time.process_time()
    time.sleep(IDLE_S)
    share = (time.process_time() - used) / (time.monotonic() - started)
    del agent
    if share > LIMIT:
        raise ProbeError(f"An idle NIXL agent should leave the CPU alone, but it used {share:.0%} of a core.")
