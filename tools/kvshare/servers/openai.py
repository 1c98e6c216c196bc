"""One streaming completion and the few other HTTP calls, with the client's own clock."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from kvshare.servers.readings import Position

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
TOP_LOGPROBS = 5


class RequestFailedError(Exception):
    """A request that was not answered; the message is one sentence."""


class RefusedKeyError(RequestFailedError):
    """A request that the server refuses for its API key, or for want of one."""


@dataclass(frozen=True)
class Completion:
    """An answered request; times in milliseconds from its sending."""

    prompt_tokens: int
    ttft_ms: float
    e2e_ms: float
    output: tuple[Position, ...]


class Http:
    """HTTP to one base URL over a kept connection, with a bearer token if there is one."""

    def __init__(self, base: str, api_key: str | None = None) -> None:
        self.base = base.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy has no place between nodes
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str, timeout: float = CONNECT_TIMEOUT_S) -> requests.Response:
        """Return the answer to a GET if its status is 200; RequestFailedError otherwise."""
        return self._checked("GET", path, timeout=(CONNECT_TIMEOUT_S, timeout))

    def post(
        self, path: str, body: dict[str, Any], timeout: float = READ_TIMEOUT_S, **more: Any
    ) -> requests.Response:
        """Return the answer to a POST of JSON if its status is 200; RequestFailedError otherwise."""
        return self._checked("POST", path, json=body, timeout=(CONNECT_TIMEOUT_S, timeout), **more)

    def _checked(self, method: str, path: str, **more: Any) -> requests.Response:
        try:
            response = self._session.request(method, self.base + path, **more)
        except requests.RequestException as error:
            raise RequestFailedError(f"{self.base}{path} does not answer: {_reason(error)}") from None
        if response.status_code == 401:
            raise RefusedKeyError(self._refused(path))
        if response.status_code != 200:
            text = " ".join(response.text.split())[:200]
            raise RequestFailedError(
                f"{self.base}{path} answers {response.status_code}: {text or 'nothing more'}"
            )
        return response

    def _refused(self, path: str) -> str:
        if "Authorization" in self._session.headers:
            return (
                f"{self.base}{path} refuses the API key: API_KEY_FILE in .env must hold the one that the "
                "server was started with; after a change, down and up"
            )
        return f"{self.base}{path} wants an API key: set API_KEY_FILE in .env to the file that holds it"


def complete(http: Http, model: str, prompt: Sequence[int], request_id: str, max_tokens: int) -> Completion:
    """Send a prompt of token ids and return its timed answer; RequestFailedError if there is none.

    Time to first token ends at the first chunk that carries a token. Tokens come back as ids, because two
    tokens may have the same text.
    """
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": 0,
        "ignore_eos": True,
        "logprobs": TOP_LOGPROBS,
        "return_tokens_as_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent = time.perf_counter()
    response = http.post("/v1/completions", body, headers={"X-Request-Id": request_id}, stream=True)
    output: list[Position] = []
    first = last = None
    prompt_tokens = 0
    for chunk in _chunks(response, http.base):
        positions = _positions(chunk)
        if positions:
            last = time.perf_counter()
            first = first or last
            output += positions
        prompt_tokens = (chunk.get("usage") or {}).get("prompt_tokens", prompt_tokens)
    if first is None or last is None:
        raise RequestFailedError(f"{http.base} ended its answer to {request_id} before the first token")
    return Completion(prompt_tokens, (first - sent) * 1000, (last - sent) * 1000, tuple(output))


def _chunks(response: requests.Response, base: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON chunks of a server-sent event stream."""
    try:
        for line in response.iter_lines():
            if not line.startswith(b"data: ") or line == b"data: [DONE]":
                continue
            chunk = json.loads(line[len(b"data: ") :])
            if "error" in chunk:
                raise RequestFailedError(f"{base} gives up in its answer: {chunk['error'].get('message')}")
            yield chunk
    except requests.RequestException as error:
        raise RequestFailedError(f"{base} broke off its answer: {_reason(error)}") from None


def _positions(chunk: dict[str, Any]) -> list[Position]:
    found = []
    for choice in chunk.get("choices", ()):
        logprobs = choice.get("logprobs") or {"tokens": (), "top_logprobs": ()}
        for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
            ranked = sorted(((_token_id(t), float(p)) for t, p in top.items()), key=lambda pair: -pair[1])
            found.append(Position(_token_id(token), tuple(ranked)))
    return found


def _token_id(text: str) -> int:
    return int(text.removeprefix("token_id:"))


def _reason(error: Exception) -> str:
    """Return the innermost cause of a requests exception, without urllib3's object addresses."""
    text = str(error)
    for phrase in (
        "Connection refused",
        "timed out",
        "No route to host",
        "Name or service not known",
        "reset by peer",
    ):
        if phrase.lower() in text.lower():
            return phrase.lower()
    return text.split("\n")[0][:200] or type(error).__name__
