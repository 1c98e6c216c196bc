# SPDX-License-Identifier: Apache-2.0
"""One key for the whole cluster: ZeroMQ's CURVE on every socket that a network reaches.

Both ends derive the same two key pairs from it, a listener's and a caller's. A listener's public key is never
sent, and without it nobody gets through the handshake (RFC 26, CurveZMQ): strangers are dropped before any of
their bytes is decoded.
"""

from __future__ import annotations

import hmac
import os
import threading
from pathlib import Path
from typing import Any

import zmq
from lmcache.v1.rejected_messages import Rejected
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

VARIABLE = "KVSHARE_CLUSTER_KEY_FILE"  # 64 hexadecimal digits; without it sockets are open to anyone
KEY_BYTES = 32
TURNED_AWAY = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def read() -> bytes | None:
    """The key, if there is one. Raises ValueError for one that is none."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    key = bytes.fromhex(Path(path).read_text().strip())
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path} should hold {KEY_BYTES} bytes in hexadecimal digits, and holds {len(key)}")
    return key


def secure(socket: Any, listens: bool, address: str) -> None:
    """Give a socket its keys before it binds or connects. Raises ValueError for a key that is none."""
    key = read()
    if key is None:
        return
    secret, public = _pair(key, "listener")
    if listens:
        socket.curve_server = True
        socket.curve_secretkey = secret
        _count_strangers(socket, address)
    else:
        socket.curve_serverkey = public
        socket.curve_secretkey, socket.curve_publickey = _pair(key, "caller")


def _pair(key: bytes, of: str) -> tuple[bytes, bytes]:
    """Secret and public key."""
    secret = z85.encode(hmac.digest(key, f"kvshare {of}".encode(), "sha256"))
    return secret, zmq.curve_public(secret)


def _count_strangers(socket: Any, address: str) -> None:
    events = f"inproc://strangers-{address}-{id(socket)}"
    socket.monitor(events, TURNED_AWAY | zmq.EVENT_MONITOR_STOPPED)
    watcher = zmq.Context(shadow=socket.context).socket(zmq.PAIR)
    watcher.connect(events)
    threading.Thread(target=_watch, args=(watcher, address), daemon=True).start()


def _watch(watcher: zmq.Socket[Any], address: str) -> None:
    rejected = Rejected(f"port {address.rpartition(':')[2]}")
    try:
        while (event := recv_monitor_message(watcher)["event"]) != zmq.EVENT_MONITOR_STOPPED:
            rejected.add(PermissionError(f"no handshake with the cluster's key ({event.name})"))
    except zmq.ZMQError:
        pass  # the context has ended
    finally:
        watcher.close(linger=0)
