"""Probe of pull-pieces: a pull that takes long holds nobody else's up, and counts as one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from probes import ProbeError
from probes.controller import free_ports, running_controller
from probes.node import CHUNK, Node, running_node, settings_for

LONG, SHORT, PIECE = 20, 2, 8  # chunks
SMALL = {"p2p_piece_bytes": 0}  # pieces are of eight chunks, however few bytes that is
HELD_S = 0.5  # that the long pull is held up at least


def probe() -> None:
    """Raises ProbeError unless a short pull is over while a long one is under way, which is then right."""
    ports = free_ports()
    with (
        running_controller(ports),
        running_node(settings_for("owner", ports)) as owner,
        running_node(settings_for("slow", ports, extra=SMALL)) as slow,
        running_node(settings_for("quick", ports)) as quick,
        ThreadPoolExecutor(1) as thread,
    ):
        owner.wait_until_synced(ports)
        for seed, chunks in ((1, LONG), (2, SHORT), (3, SHORT)):
            owner.ask("store", seed=seed, chunks=chunks)
        for node in (slow, quick):  # both are connected from here on
            _right(node.pull_until(seed=3, chunks=SHORT, hits=SHORT * CHUNK), SHORT)
        before = owner.ask("transfers")["begun"]
        owner.ask("hold_writes", receiver=f"{slow.settings.host}:{slow.settings.init_port}")
        slow.ask("store", seed=4, chunks=1)
        asked = thread.submit(slow.ask, "get_during", seed=4, long=1, chunks=LONG)
        owner.ask("wait_until_held")
        _right(quick.get(2, SHORT), SHORT)
        time.sleep(HELD_S)
        owner.ask("release_writes")
        local, long = asked.result()
        _right(local, 1)
        _right(long, LONG)
        if local["seconds"] > HELD_S:
            raise ProbeError(f"A local hit should not wait for another request's pull: {local}.")
        _in_pieces(owner, before)


def _right(found: dict[str, Any], chunks: int) -> None:
    if found["hits"] < chunks * CHUNK or found["wrong"]:
        raise ProbeError(f"A pull of {chunks} chunks should bring them all, while others pull: {found}.")


def _in_pieces(owner: Node, before: int) -> None:
    sizes = owner.ask("sizes_of_writes")
    if max(sizes) > PIECE or sum(sizes) != LONG:
        raise ProbeError(f"{LONG} chunks should travel {PIECE} at a time, and do so: {sizes}.")
    counted = owner.ask("transfers")
    if counted != {"begun": before + 2, "under_way": 0}:
        raise ProbeError(f"The owner should count two transfers since {before}, both over: {counted}.")
