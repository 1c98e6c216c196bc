"""One streaming completion, timed with as little between the socket and the clock as can be.

While a stream runs, each line is stamped and kept; parsing waits until it has ended. That keeps the client
out of what it measures at high concurrency (benchmarks/cpu/client_overhead.py).
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kvshare.servers.openai import CONNECT_TIMEOUT_S, RequestFailedError

READ_TIMEOUT_S = 300.0  # a long queue is a result, a server that is gone is not
_GONE = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class Ask:
    """What to complete: a prompt of token ids, and a salt that sets vLLM's own prefix cache aside."""

    request_id: str
    prompt: Sequence[int]
    max_tokens: int
    salt: str | None = None


@dataclass(frozen=True)
class Timed:
    """An answer: tokens from `usage`, times in seconds of ``time.perf_counter``."""

    sent: float
    prompt_tokens: int
    output_tokens: int
    token_times: tuple[float, ...]


class Wire:
    """A kept connection to one server; not for several threads at once."""

    def __init__(self, base: str, model: str, api_key: str | None = None) -> None:
        self.base, self.model = base.rstrip("/"), model
        parts = urlsplit(self.base)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=CONNECT_TIMEOUT_S)
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def complete(self, ask: Ask) -> Timed:
        """Send a prompt and return its timed answer; RequestFailedError if there is none."""
        body = json.dumps(_body(self.model, ask)).encode()
        headers = self._headers | {"X-Request-Id": ask.request_id}
        try:
            sent, response = self._send(body, headers)
            if response.status != 200:
                text = " ".join(response.read().decode(errors="replace").split())[:200]
                raise RequestFailedError(
                    f"{self.base}/v1/completions answers {response.status}: {text or 'nothing more'}"
                )
            return _timed(self.base, ask, sent, _stamped(response))
        except _GONE as error:
            self._connection.close()
            raise RequestFailedError(f"{self.base} broke off its answer: {_reason(error)}") from None

    def _send(self, body: bytes, headers: dict[str, str]) -> tuple[float, http.client.HTTPResponse]:
        """Send on the kept connection, or on a new one where the server has closed it meanwhile."""
        for attempt in (1, 2):
            kept = self._kept
            try:
                self._connect()
                sent = time.perf_counter()
                self._connection.request("POST", "/v1/completions", body, headers)
                return sent, self._connection.getresponse()
            except _GONE as error:
                self._connection.close()
                if attempt == 2 or not kept:
                    raise RequestFailedError(f"{self.base} does not answer: {_reason(error)}") from None
        raise AssertionError("the loop returns or raises")

    @property
    def _kept(self) -> bool:
        return self._connection.sock is not None

    def _connect(self) -> None:
        if not self._kept:
            self._connection.connect()
            self._connection.sock.settimeout(READ_TIMEOUT_S)


def _body(model: str, ask: Ask) -> dict[str, Any]:
    """Return the request; usage in every chunk tells which of them carry a token, and how many."""
    body = {
        "model": model,
        "prompt": list(ask.prompt),
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    return body | ({"cache_salt": ask.salt} if ask.salt else {})


def _stamped(response: http.client.HTTPResponse) -> list[tuple[float, bytes]]:
    """Return every line with the moment of its arrival."""
    lines, now = [], time.perf_counter
    while line := response.readline():
        if line.startswith(b"data: {"):
            lines.append((now(), line))
    return lines


def _timed(base: str, ask: Ask, sent: float, lines: list[tuple[float, bytes]]) -> Timed:
    times, prompt_tokens, output_tokens = [], 0, 0
    for arrived, line in lines:
        chunk = json.loads(line[len(b"data: ") :])
        if "error" in chunk:
            raise RequestFailedError(f"{base} gives up in its answer: {chunk['error'].get('message')}")
        usage = chunk.get("usage") or {}
        prompt_tokens = usage.get("prompt_tokens", prompt_tokens)
        counted = usage.get("completion_tokens", output_tokens)
        if counted > output_tokens:
            times.append(arrived)
        output_tokens = max(counted, output_tokens)
    if not times:
        raise RequestFailedError(f"{base} ended its answer to {ask.request_id} before the first token")
    return Timed(sent, prompt_tokens, output_tokens, tuple(times))


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
