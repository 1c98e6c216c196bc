"""HTTP to one server, with as little between the socket and the clock as can be.

The standard library's client: it connects before the clock starts, and sends at once when told to.
"""

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
TIMED_OUT = "timed out"  # how a sentence ends of a server that took too long
_GONE = (OSError, http.client.HTTPException)


class RequestFailedError(Exception):
    """A request that was not answered; the message is one sentence."""


class RefusedKeyError(RequestFailedError):
    """A request that the server refuses for its API key, or for want of one."""


@dataclass(frozen=True)
class Stream:
    """When a request was sent, and the JSON of each event with its arrival; seconds of ``perf_counter``."""

    sent: float
    events: tuple[tuple[float, bytes], ...]


class Http:
    """A kept connection to one base URL, with a bearer token if there is one; for one thread at a time."""

    def __init__(self, base: str, api_key: str | None = None) -> None:
        self.base = base.rstrip("/")
        url = urlsplit(self.base)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(url.hostname or "", url.port, timeout=CONNECT_TIMEOUT_S)
        self._prefix = url.path
        self._key = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def get(self, path: str, timeout: float = CONNECT_TIMEOUT_S) -> str:
        """Return the answer to a GET if its status is 200; RequestFailedError otherwise."""
        return self._read(path, self._send("GET", path, timeout)[1])

    def post(self, path: str, body: dict[str, Any], timeout: float = READ_TIMEOUT_S) -> str:
        """Return the answer to a POST of JSON if its status is 200; RequestFailedError otherwise."""
        return self._read(path, self._send("POST", path, timeout, json.dumps(body).encode())[1])

    def stream(
        self, path: str, body: dict[str, Any], request_id: str, timeout: float = READ_TIMEOUT_S
    ) -> Stream:
        """Return the server-sent events that answer a POST of JSON, up to [DONE]; RequestFailedError without.

        Each is stamped and kept as it comes; parsing waits until the stream has ended. That keeps the client
        out of what it measures at high concurrency (benchmarks/cpu/client_overhead.py).
        """
        sent, response = self._send("POST", path, timeout, json.dumps(body).encode(), request_id)
        events, now = [], time.perf_counter
        try:
            while line := response.readline():
                if line.startswith(b"data: "):
                    events.append((now(), line[len(b"data: ") :]))
        except _GONE as error:
            raise self._failed(path, "broke off its answer", error) from None
        # Where the connection ends between two chunks, http.client says nothing.
        if not events or events.pop()[1].strip() != b"[DONE]":
            raise self._failed(path, "broke off its answer", EOFError("it ended before [DONE]"))
        return Stream(sent, tuple(events))

    def _send(
        self, method: str, path: str, timeout: float, body: bytes | None = None, request_id: str = ""
    ) -> tuple[float, http.client.HTTPResponse]:
        """Send on the kept connection, or on a new one where the server has closed it meanwhile.

        Return when, and the answer with its body still to read, if its status is 200.
        """
        kept = self._connection.sock is not None
        headers = {"Content-Type": "application/json"} | self._key
        if request_id:
            headers["X-Request-Id"] = request_id
        try:
            if not kept:
                self._connection.connect()
            self._connection.sock.settimeout(timeout)
            sent = time.perf_counter()
            self._connection.request(method, self._prefix + path, body, headers)
            response = self._connection.getresponse()
        except _GONE as error:
            failure = self._failed(path, "does not answer", error)
            if kept and isinstance(error, ConnectionError):
                return self._send(method, path, timeout, body, request_id)
            raise failure from None
        if response.status == 200:
            return sent, response
        text = " ".join(self._read(path, response).split())[:200]
        if response.status == 401:
            raise RefusedKeyError(f"{self.base}{path} {self.refusal}")
        raise RequestFailedError(f"{self.base}{path} answers {response.status}: {text or 'nothing more'}")

    def _read(self, path: str, response: http.client.HTTPResponse) -> str:
        try:
            return response.read().decode(errors="replace")
        except _GONE as error:
            raise self._failed(path, "broke off its answer", error) from None

    def _failed(self, path: str, what: str, error: Exception) -> RequestFailedError:
        """Close the connection, of which nobody knows what comes next, and return the sentence."""
        self._connection.close()
        return RequestFailedError(f"{self.base}{path} {what}: {_reason(error)}")

    @property
    def refusal(self) -> str:
        """Why a server answers 401, and what to do."""
        if self._key:
            return (
                "refuses the API key: API_KEY_FILE in .env must hold the one that the server was "
                "started with; after a change, down and up"
            )
        return "wants an API key: set API_KEY_FILE in .env to the file that holds it"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return TIMED_OUT
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
