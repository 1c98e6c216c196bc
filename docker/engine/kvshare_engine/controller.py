"""Start the LMCache controller."""

from __future__ import annotations

import json
import os

from kvshare_engine import cluster_key, fingerprint
from kvshare_engine.environment import STATE_DIR, Controller

HEALTH_CHECK_INTERVAL_S = 5
WORKER_TIMEOUT_S = 30


def command(controller: Controller) -> list[str]:
    """The controller's command line; workers that miss their heartbeats for WORKER_TIMEOUT_S are removed."""
    ports = {
        "pull": controller.pull_port,
        "reply": controller.reply_port,
        "heartbeat": controller.heartbeat_port,
    }
    return [
        "lmcache_controller",
        f"--host={controller.host}",
        f"--port={controller.http_port}",
        f"--monitor-ports={json.dumps(ports)}",
        f"--health-check-interval={HEALTH_CHECK_INTERVAL_S}",
        f"--lmcache-worker-timeout={WORKER_TIMEOUT_S}",
    ]


def run() -> None:
    controller = Controller.from_environment()
    STATE_DIR.mkdir(parents=True, exist_ok=True)
    os.environ.update(cluster_key.environment())
    fingerprint.write(fingerprint.of("controller"))
    arguments = command(controller)
    os.execvp(arguments[0], arguments)
