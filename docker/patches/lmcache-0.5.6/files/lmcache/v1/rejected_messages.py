# SPDX-License-Identifier: Apache-2.0
"""Messages that a socket could not use are counted, and named in the log at most once a minute a socket."""

from __future__ import annotations

import time

import prometheus_client
from lmcache.logging import init_logger

logger = init_logger(__name__)

LOG_INTERVAL_S = 60.0
REJECTED = prometheus_client.Counter(
    "lmcache:rejected_messages", "Messages that could not be decoded or handled", ["socket"]
)


class Rejected:
    """The tally of one socket."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._count = REJECTED.labels(socket)
        self._unlogged = 0
        self._logged_at = float("-inf")

    def add(self, error: Exception) -> None:
        """Count a message that raised ``error``."""
        self._count.inc()
        self._unlogged += 1
        if time.monotonic() - self._logged_at < LOG_INTERVAL_S:
            return
        logger.warning(
            "%d message(s) on the %s socket could not be used, the last because of %s: %s",
            self._unlogged,
            self._socket,
            type(error).__name__,
            str(error)[:200],
        )
        self._unlogged = 0
        self._logged_at = time.monotonic()
