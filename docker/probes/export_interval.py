"""Probe of export-interval: what LMCache counted is exported as often as it is told to."""

from __future__ import annotations

import time

from probes import ProbeError
from probes.controller import free_ports, running_controller
from probes.node import running_node, settings_for

INTERVAL_S, WITHIN_S = 1, 7.0  # upstream's interval is 10
COUNTER = "lmcache:num_store_requests_total"


def probe() -> None:
    """Raises ProbeError unless a store is exported in time."""
    ports = free_ports()
    with (
        running_controller(ports),
        running_node(settings_for("a", ports, extra={"stats_log_interval": INTERVAL_S})) as node,
    ):
        node.ask("store", seed=1, chunks=1)
        stored = time.monotonic()
        while node.ask("counted", counter=COUNTER) < 1:
            if time.monotonic() - stored > WITHIN_S:
                raise ProbeError(f"A store should be counted within {WITHIN_S:.0f} s and was not.")
            time.sleep(0.1)
