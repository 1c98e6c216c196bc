# SPDX-License-Identifier: Apache-2.0
"""The cluster's key over HTTP: what LMCache serves asks for a token that follows from it."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lmcache.v1.cluster_key import read
from lmcache.v1.rejected_messages import Rejected

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/healthz", "/healthcheck")
REFUSAL = (
    "expected a bearer token that follows from the cluster's key, and found another or none; "
    "python -m kvshare_engine ask PATH, in a container of a node, sends it"
)


def headers() -> dict[str, str]:
    """What a caller sends along; nothing without a key."""
    token = _token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _token() -> str:
    key = read()
    return hmac.digest(key, b"kvshare http", "sha256").hex() if key else ""


class Keyed:
    """ASGI middleware; without a key it lets everybody through.

    Messages: https://asgi.readthedocs.io/en/latest/specs/www.html
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.token = _token().encode()
        self.rejected: Rejected | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if not self.token or scope["type"] == "lifespan" or self._may(scope):
            await self.app(scope, receive, send)
            return
        self._count(scope)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send)

    def _may(self, scope: Message) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        has_it = hmac.compare_digest(token.strip(), self.token)
        return scope["path"] in OPEN or (scheme.lower() == b"bearer" and has_it)

    def _count(self, scope: Message) -> None:
        if self.rejected is None:
            self.rejected = Rejected(f"port {scope['server'][1]}")
        self.rejected.add(PermissionError(f"{scope['client'][0]} asks without the cluster's key"))


async def _refuse(send: Send) -> None:
    body = json.dumps({"detail": REFUSAL}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
