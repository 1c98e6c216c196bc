"""Start the coordinator of SHARING=multiprocess: it tells cache servers of each other."""

from __future__ import annotations

import os

from kvshare_engine import cluster_key, fingerprint
from kvshare_engine.environment import STATE_DIR, Coordinator

HEALTH_CHECK_INTERVAL_S = 1
INSTANCE_TIMEOUT_S = 5  # of a cache server that tells nothing of itself any more


def command(coordinator: Coordinator) -> list[str]:
    return [
        "lmcache",
        "coordinator",
        f"--host={coordinator.host}",
        f"--port={coordinator.port}",
        f"--health-check-interval={HEALTH_CHECK_INTERVAL_S}",
        f"--instance-timeout={INSTANCE_TIMEOUT_S}",
        "--eviction-check-interval=0",  # of shared storage, which there is none of
    ]


def run() -> None:
    coordinator = Coordinator.from_environment()
    STATE_DIR.mkdir(parents=True, exist_ok=True)
    os.environ.update(cluster_key.environment())
    fingerprint.write(fingerprint.of("coordinator"))
    arguments = command(coordinator)
    os.execvp(arguments[0], arguments)
