"""Probe of peer-heartbeat: a connection whose other end no longer answers is dropped."""

from __future__ import annotations

from multiprocessing.connection import Connection

from probes import ProbeError
from probes.controller import free_ports
from probes.forks import Fork

CONNECTED_WITHIN_S, DROPPED_WITHIN_S = 10, 15


def probe() -> None:
    """Raises ProbeError unless a process notices that the one it is connected to was stopped."""
    port = free_ports().http
    server, client = Fork(_serve, port), Fork(_connect, port)
    try:
        if not client.answer():
            raise ProbeError(f"A socket should be answered within {CONNECTED_WITHIN_S} s.")
        server.pause()
        if not client.answer():
            raise ProbeError(f"A dead connection should be dropped within {DROPPED_WITHIN_S} s.")
    finally:
        server.kill()
        client.kill()


def _serve(connection: Connection, port: int) -> None:
    import zmq
    from lmcache.v1.rpc_utils import get_zmq_socket

    socket = get_zmq_socket(zmq.Context(), f"127.0.0.1:{port}", "tcp", zmq.REP, "bind")
    socket.send(socket.recv())
    connection.poll(None)


def _connect(connection: Connection, port: int) -> None:
    import zmq
    from lmcache.v1.rpc_utils import get_zmq_socket

    socket = get_zmq_socket(zmq.Context(), f"127.0.0.1:{port}", "tcp", zmq.REQ, "connect")
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    socket.send(b"")
    connection.send(socket.poll(CONNECTED_WITHIN_S * 1000) != 0)
    connection.send(monitor.poll(DROPPED_WITHIN_S * 1000) != 0)
