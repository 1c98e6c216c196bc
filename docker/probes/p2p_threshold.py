"""Probe of p2p-threshold: what a pull would bring too little of is computed, without asking for it."""

from __future__ import annotations

from probes import ProbeError
from probes.controller import free_ports, running_controller
from probes.node import CHUNK, Node, running_node, settings_for

LONG, SHORT = 3, 2  # chunks
ASKED = "Got layout info from controller"
OWNER_ASKED = "Received P2P batched lookup and get msg"


def probe() -> None:
    """Raises ProbeError unless only the long prompt is pulled, and only what may be is asked for."""
    ports = free_ports()
    with (
        running_controller(ports),
        running_node(settings_for("owner", ports)) as owner,
        running_node(settings_for("choosy", ports, config={"p2p_min_tokens": LONG * CHUNK})) as choosy,
        running_node(settings_for("never", ports, config={"p2p_min_tokens": "never"})) as never,
    ):
        owner.wait_until_synced(ports)
        owner.ask("store", seed=1, chunks=LONG)
        owner.ask("store", seed=2, chunks=SHORT)
        if choosy.pull_until_hit(seed=1, chunks=LONG)["hits"] != LONG * CHUNK:
            raise ProbeError("A prompt as long as the threshold should be pulled.")
        _require_none(choosy, owner, "the whole prompt is too short", SHORT, controller_asked=0, declined=1)
        _require_none(choosy, owner, "the peer holds too little", SHORT + 2, controller_asked=1, declined=2)
        _require_none(never, owner, "the threshold is never", LONG, controller_asked=0, declined=1, seed=1)


def _require_none(
    node: Node, owner: Node, why: str, chunks: int, *, controller_asked: int, declined: int, seed: int = 2
) -> None:
    asked, owner_asked = node.logged(ASKED), owner.logged(OWNER_ASKED)
    hits = node.ask("get", seed=seed, chunks=chunks, request=f"{node.settings.instance}-{chunks}")["hits"]
    if hits:
        raise ProbeError(f"Where {why}, nothing should be pulled, but {hits} tokens were.")
    found = {
        "questions to the controller": (node.logged(ASKED) - asked, controller_asked),
        "questions to the owner": (owner.logged(OWNER_ASKED) - owner_asked, 0),
        "declined pulls": (node.ask("declined"), declined),
    }
    for what, (seen, expected) in found.items():
        if seen != expected:
            raise ProbeError(f"Where {why}, there should be {expected} {what}, but there are {seen:g}.")
