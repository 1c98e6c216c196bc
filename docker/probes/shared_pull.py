"""Probe of shared-pull: what several requests want travels once, and each of them has it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from probes import ProbeError
from probes.controller import free_ports, running_controller
from probes.node import CHUNK, Node, running_node, settings_for

CHUNKS, REQUESTS = 20, 8
TOGETHER_S = 0.5  # in which all of them are looked up


def probe() -> None:
    """Raises ProbeError unless eight requests for a prompt make one pull, also where it fails."""
    ports = free_ports()
    with (
        running_controller(ports),
        running_node(settings_for("owner", ports)) as owner,
        running_node(settings_for("other", ports)) as other,
    ):
        owner.wait_until_synced(ports)
        for seed, chunks in ((1, CHUNKS), (2, 1), (3, CHUNKS)):
            owner.ask("store", seed=seed, chunks=chunks)
        other.pull_until_hit(seed=2, chunks=1)  # they know each other from here on
        free, before = other.ask("pages")["free"], owner.ask("transfers")["begun"]
        found = _together(owner, other, seed=1)
        if any(one["hits"] != CHUNKS * CHUNK or one["wrong"] for one in found):
            raise ProbeError(f"Each request should get all {CHUNKS} chunks, and right: {found}.")
        pulls = owner.ask("transfers")["begun"] - before
        if pulls != 1:
            raise ProbeError(f"{REQUESTS} requests for one prompt should make one pull, and make {pulls}.")
        if other.ask("pages")["free"] != free:
            raise ProbeError(f"All {free} pages should be free again: {other.ask('pages')}.")
        found = _together(owner, other, seed=3, fail=True)
        left_alone = free - other.ask("pages")["free"]
        if any(one["hits"] for one in found) or not 0 < left_alone <= CHUNKS:
            raise ProbeError(f"A pull that fails should bring nobody anything: {found}, {left_alone} pages.")


def _together(owner: Node, other: Node, seed: int, fail: bool = False) -> list[dict[str, Any]]:
    """What each of the requests gets that ask while the owner's first write is held up."""
    receiver = f"{other.settings.host}:{other.settings.init_port}"
    owner.ask("hold_writes", receiver=receiver, fail=fail)
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(other.ask, "get_together", seed=seed, chunks=CHUNKS, times=REQUESTS)
        owner.ask("wait_until_held")
        time.sleep(TOGETHER_S)
        owner.ask("release_writes")
        found: list[dict[str, Any]] = asked.result()
    return found
