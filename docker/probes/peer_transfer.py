"""Probe of peer-transfer: a receiver that is gone keeps its peer from serving others for a bounded time."""

from __future__ import annotations

from probes import ProbeError
from probes.controller import request
from probes.node import Node, running_node, settings_for, two_nodes

CHUNKS = 3
SOON_S = 10.0


def probe() -> None:
    """Raises ProbeError unless a node serves others after writing to a stopped one, and then that one."""
    with two_nodes() as (ports, a, b), running_node(settings_for("c", ports)) as c:
        a.ask("store", seed=1, chunks=CHUNKS)
        for node in (b, c):
            _require_pull(node, "at first")
        b.fork.pause()
        _ask_in_the_name_of(b, a, c.ask("keys", seed=1, chunks=CHUNKS))
        _require_pull(c, "after a transfer to a node that is stopped")
        b.fork.resume()
        _require_pull(b, "by the node that was stopped")


def _ask_in_the_name_of(receiver: Node, owner: Node, keys: list[str]) -> None:
    """Have the owner write these chunks into the receiver's first pages."""
    message = {
        "type": "BatchedLookupAndGetMsg",
        "lookup_id": "in-its-name",
        "receiver_id": f"127.0.0.1:{receiver.settings.init_port}",
        "keys": keys,
        "mem_indexes": list(range(len(keys))),
    }
    request(owner.settings.lookup_port, message)


def _require_pull(node: Node, when: str) -> None:
    found = node.pull_until_hit(seed=1, chunks=CHUNKS, seconds=SOON_S)
    if not found["hits"] or found["wrong"]:
        raise ProbeError(f"A prompt should be pulled {when}, but got {found}.")
