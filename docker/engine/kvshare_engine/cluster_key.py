"""The cluster's key, where one was given: every ZeroMQ port then turns away who has not the same."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvshare.contract import bearer_of, name_of_key
from kvshare_engine.environment import refuse

SECRET = Path("/run/secrets/cluster_key")
VARIABLE = "KVSHARE_CLUSTER_KEY_FILE"  # what the patch cluster-key reads
HANDSHAKE_MS = 1000


def environment(secret: Path = SECRET) -> dict[str, str]:
    """What tells LMCache where the key lies, nothing without one; ends the container for one that is none."""
    path = _path(secret)
    if path is None:
        return {}
    _key(path)
    return {VARIABLE: str(path)}


def name(given: Mapping[str, str], secret: Path = SECRET) -> str:
    """What tells the key apart from others; '' without one."""
    path = _path(secret, given)
    return name_of_key(_key(path)) if path else ""


def headers(secret: Path = SECRET) -> dict[str, str]:
    """What the controller's HTTP asks for; nothing without a key."""
    path = _path(secret)
    return {"Authorization": f"Bearer {bearer_of(_key(path))}"} if path else {}


def let_in(socket: Any, secret: Path = SECRET) -> None:
    """Give a socket what lets it in, before it connects; the formula is that of the patch cluster-key."""
    path = _path(secret)
    if path is None:
        return
    _, socket.curve_serverkey = _pair(_key(path), "listener")
    socket.curve_secretkey, socket.curve_publickey = _pair(_key(path), "caller")


def is_turned_away(address: str, secret: Path = SECRET) -> bool:
    """Whether who listens there has another key, or one of both has none; False where nobody answers."""
    import zmq
    from zmq.utils.monitor import recv_monitor_message

    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        let_in(socket, secret)
        failed = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        events = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | failed)
        socket.connect(f"tcp://{address}")
        if not events.poll(HANDSHAKE_MS):
            return False
        return bool(recv_monitor_message(events)["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED)
    finally:
        context.destroy(linger=0)


def _pair(key: str, of: str) -> tuple[bytes, bytes]:
    """Secret and public key."""
    import zmq
    from zmq.utils import z85

    own = z85.encode(hmac.digest(bytes.fromhex(key), f"kvshare {of}".encode(), "sha256"))
    return own, zmq.curve_public(own)


def _path(secret: Path, given: Mapping[str, str] = os.environ) -> Path | None:
    if given.get(VARIABLE):
        return Path(given[VARIABLE])
    return secret if secret.is_file() and secret.read_text().strip() else None


def _key(path: Path) -> str:
    try:
        key = path.read_text().strip()
    except (OSError, ValueError):
        key = ""
    if not re.fullmatch("[0-9a-fA-F]{64}", key):
        refuse(
            f"expected the cluster's key in {path}, 64 hexadecimal digits, and found none; "
            "make one: openssl rand -hex 32"
        )
    return key
