"""Probe of lookup-timeout: an id that timed out is a miss for ever, and a lookup that fails is answered."""

from __future__ import annotations

from probes import ProbeError
from probes.controller import free_ports, running_controller
from probes.node import LOOKUP_TIMEOUT_MS, running_node, settings_for

SOON_S = 2.0


def probe() -> None:
    """Raises ProbeError unless the second question gets 0, and failing backends are misses at once."""
    ports = free_ports()
    with running_controller(ports), running_node(settings_for("a", ports)) as node:
        answers = node.ask("look_up_unanswered", request="nobody-answers")
        if answers["first"] != 0 or answers["seconds"] * 1000 < LOOKUP_TIMEOUT_MS:
            raise ProbeError(f"A lookup that nobody answers should end with 0 at its timeout: {answers}.")
        if answers["second"] != 0:
            raise ProbeError(f"A lookup after its timeout should be a miss, but is {answers['second']}.")
        for fault in ("batched_async_contains", "batched_get_non_blocking"):
            node.ask("break_p2p", method=fault)
            found = node.ask("get", seed=1, chunks=3, request=fault)
            if found["hits"] != 0 or found["seconds"] > SOON_S:
                raise ProbeError(f"When {fault} fails, a lookup should be a miss at once, but is {found}.")
