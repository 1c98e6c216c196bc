"""Runs in a server's container: says of each ZeroMQ port whether it lets in a stranger, and who has the key.

usage: strangers.py PORT ... (each with :PULL if it only takes in)
"""

from __future__ import annotations

import json
import sys

import zmq
from lmcache.v1.cluster_key import secure
from zmq.utils.monitor import recv_monitor_message

HANDSHAKE_MS = 10_000
OVER = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def lets_in(address: str, role: int, *, with_key: bool) -> bool:
    context = zmq.Context()
    client = context.socket(role)
    try:
        if with_key:
            secure(client, listens=False, address=address)
        events = client.get_monitor_socket(OVER)
        client.connect(f"tcp://{address}")
        assert events.poll(HANDSHAKE_MS), address
        return bool(recv_monitor_message(events)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED)
    finally:
        context.destroy(linger=0)


found = {}
for argument in sys.argv[1:]:
    host, port, *kind = argument.split(":")
    role = zmq.PUSH if kind else zmq.REQ
    found[port] = [lets_in(f"{host}:{port}", role, with_key=with_key) for with_key in (False, True)]
print(json.dumps(found))
