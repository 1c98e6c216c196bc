"""Probe of held-prefix: what vLLM holds itself is not pulled from a peer."""

from __future__ import annotations

from probes import ProbeError
from probes.node import CHUNK, Node, two_nodes

CHUNKS = 3
CONTROLLER_ASKED = "Got layout info from controller"


def probe() -> None:
    """Raises ProbeError unless a pull is made where vLLM lacks most of it, and only there."""
    with two_nodes() as (_, owner, other):
        for seed in (1, 2, 3):
            owner.ask("store", seed=seed, chunks=CHUNKS)
        if other.pull_until(1, CHUNKS, CHUNKS * CHUNK)["hits"] != CHUNKS * CHUNK:
            raise ProbeError("A prompt of which vLLM holds nothing should be pulled.")
        for held in (CHUNKS, CHUNKS - 1):
            asked = other.logged(CONTROLLER_ASKED)
            _require(other, 0, seed=2, held=held)
            if other.logged(CONTROLLER_ASKED) != asked:
                raise ProbeError(f"With {held} of {CHUNKS} chunks held, the controller should not be asked.")
        if other.ask("declined") != 2:
            raise ProbeError(f"Two pulls should be counted as declined, not {other.ask('declined'):g}.")
        _require(other, CHUNKS, seed=3, held=1)
        other.ask("store", seed=4, chunks=CHUNKS)
        _require(other, CHUNKS, seed=4, held=CHUNKS)


def _require(node: Node, chunks: int, *, seed: int, held: int) -> None:
    """LMCache must find so many chunks of a prompt, of which vLLM holds the first ``held``."""
    found = node.ask("get", seed=seed, chunks=CHUNKS, request=f"{seed}-{held}", computed=held * CHUNK)
    if (found["hits"], found["wrong"]) != (chunks * CHUNK, 0):
        raise ProbeError(
            f"With {held} of {CHUNKS} chunks held by vLLM, {chunks} should be found, but got {found}."
        )
