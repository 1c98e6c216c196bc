"""The way to an engine of another machine: the docker command's own, which its contexts describe.

docker-py goes over ssh by itself: it loses an answer when ssh has ended, lets ssh speak on our terminal, and
can neither end a process's input nor leave a log that it follows (7.2.0). `docker system dial-stdio` leads to
all alike, over ssh and TLS, and what it gives is a socket as any other.
"""

import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

END_S = 2.0


class DialedAdapter(HTTPAdapter):
    """Takes docker-py's requests to the engine of a context."""

    def __init__(self, context: str) -> None:
        super().__init__()
        self._command = ["docker", "--context", context, "system", "dial-stdio"]
        self._dialed: list[subprocess.Popen[bytes]] = []
        self._pool = HTTPConnectionPool("localhost", maxsize=10)
        self._pool.ConnectionCls = partial(_Connection, self._dial)  # type: ignore[assignment]

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        """Return the one pool that there is."""
        return self._pool

    def request_url(self, request: PreparedRequest, proxies: Mapping[str, str] | None) -> str:
        """Return the path alone: no proxy stands on this way."""
        del proxies
        return request.path_url

    def said(self) -> str:
        """Return what the command complained of, or ssh beneath it, as a connection ended."""
        deadline = time.monotonic() + END_S
        for process in reversed(self._dialed):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
            assert process.stderr is not None
            if text := process.stderr.read().decode(errors="replace").strip():
                return text
        return ""

    def _dial(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: Ctrl-C must not take away what cleans up. It ends when its socket closes.
            self._dialed.append(
                subprocess.Popen(
                    self._command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            )
        return ours


class _Connection(HTTPConnection):
    def __init__(self, dial: Callable[[], socket.socket], host: str, **more: Any) -> None:
        super().__init__(host, **more)
        self._dial = dial

    def connect(self) -> None:
        self.sock = self._dial()
        self.sock.settimeout(self.timeout)
