"""Probe of dead-peer: whatever happens to a peer, nobody waits for long, and it is found when it returns."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Any

from probes import ProbeError
from probes.controller import Ports, free_ports, running_controller
from probes.node import LOOKUP_TIMEOUT_MS, Node, running_node, settings_for

CHUNKS = 3
TOLERANCE_S = 0.5
BACK_WITHIN_S = 30.0


def probe() -> None:
    """Raises ProbeError unless pulls, from the peer and from another, and local hits are over in time."""
    ports = free_ports()
    settings = settings_for("a", ports)
    with (
        running_controller(ports),
        running_node(settings_for("b", ports)) as b,
        running_node(settings_for("c", ports)) as c,
    ):
        with running_node(settings) as a:
            _fill(ports, a, b, c)
            b.pull_until_hit(seed=1, chunks=CHUNKS)
            os.kill(a.fork.pid, signal.SIGSTOP)
            _check_survivors(b, "stopped")
            _check_survivors(c, "stopped before it was ever connected to")
        _check_survivors(b, "killed")
        for where, again in (
            ("the old address", settings),
            ("a new address", replace(settings, init_port=free_ports().pull, lookup_port=free_ports().reply)),
        ):
            with running_node(again) as a:
                _fill(ports, a)
                _check_return(b, where)


def _fill(ports: Ports, *nodes: Node) -> None:
    """Each node stores a prompt of its own, whose seed is its place."""
    for seed, node in enumerate(nodes, start=1):
        node.wait_until_synced(ports)
        node.ask("store", seed=seed, chunks=CHUNKS)


def _check_survivors(node: Node, state: str) -> None:
    for number in range(3):
        for what, seed in (("a pull from it", 1), ("a local hit", 2 if node.settings.instance == "b" else 3)):
            found = node.ask("get", seed=seed, chunks=CHUNKS, request=f"{state}-{number}-{what}")
            _check(found, f"With a peer {state}, {what}")
            if seed != 1 and not found["hits"]:
                raise ProbeError(f"With a peer {state}, {what} should be a hit.")
    other = 3 if node.settings.instance == "b" else 2
    found = node.pull_until_hit(seed=other, chunks=CHUNKS)
    _check(found, f"With a peer {state}, a pull from another")
    if not found["hits"]:
        raise ProbeError(f"With a peer {state}, a pull from another should be a hit.")


def _check(found: dict[str, Any], what: str) -> None:
    if found["seconds"] > LOOKUP_TIMEOUT_MS / 1000 + TOLERANCE_S:
        raise ProbeError(f"{what} took {found['seconds']:.1f} s.")
    if found["wrong"]:
        raise ProbeError(f"{what} gave {found['wrong']} wrong tokens.")


def _check_return(node: Node, where: str) -> None:
    deadline = time.monotonic() + BACK_WITHIN_S
    found = node.pull_until_hit(seed=1, chunks=CHUNKS, seconds=deadline - time.monotonic())
    if not found["hits"] or found["wrong"]:
        raise ProbeError(f"A peer that returned at {where} should be pulled from within {BACK_WITHIN_S} s.")
