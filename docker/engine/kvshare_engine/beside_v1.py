"""What vLLM serves beside /v1 asks for the API key too, where there is one, but for what is read without."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Iterable

from kvshare_engine.requests import App, Message, Receive, Send

KEY = "VLLM_API_KEY"  # as vLLM reads it
V1 = "/v1"  # vLLM's own check holds what begins so
# Docker's health check, the gateway and Prometheus ask without a key; a version tells nothing of anybody's.
OPEN = frozenset(("/health", "/ping", "/metrics", "/metrics/", "/version"))


class Keyed:
    """ASGI middleware, given to vLLM with `--middleware`.

    Messages: https://asgi.readthedocs.io/en/latest/specs/www.html
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.key = os.environ.get(KEY, "").encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if not self.key or scope["type"] == "lifespan" or self._may(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send)

    def _may(self, scope: Message) -> bool:
        path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
        return path in OPEN or path.startswith(V1) or hmac.compare_digest(_bearer(scope["headers"]), self.key)


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The token of a request, or nothing."""
    given = next((value for name, value in headers if name.lower() == b"authorization"), b"")
    scheme, _, token = given.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


async def _refuse(send: Send) -> None:
    """Answer 401 in vLLM's own words for it."""
    body = json.dumps({"error": "Unauthorized"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
