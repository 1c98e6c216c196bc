"""Probe of descriptors: what a stranger sends as the addresses of its memory runs no code."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from pathlib import Path

from probes import ProbeError
from probes.controller import request
from probes.node import two_nodes
from probes.noise import MakesAFolder

PROMPT = {"seed": 1, "chunks": 3}


def probe() -> None:
    """Raises ProbeError unless nothing ran, and a peer pulls after it."""
    with tempfile.TemporaryDirectory() as folder, two_nodes() as (_, a, b):
        made = Path(folder) / "made"
        message = {
            "type": "NixlMemRegRequest",
            "remote_agent_name": b"nobody",
            "local_id": "127.0.0.1:1",
            "local_xfer_dlist_bytes": pickle.dumps(MakesAFolder(made)),
        }
        with contextlib.suppress(ValueError):  # an empty answer
            request(a.settings.init_port, message)
        if made.exists():
            raise ProbeError("What a stranger sends to the P2P init port should run nothing, and it ran.")
        a.ask("store", **PROMPT)
        if not b.pull_until_hit(**PROMPT)["hits"]:
            raise ProbeError("After a stranger's message a prompt should be pulled.")
