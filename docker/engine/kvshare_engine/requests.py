"""What a request may tell LMCache: anything else in `kv_transfer_params` is answered with 400.

vLLM hands the field to its connector unread, and one odd value there can end the engine for everybody.
Understood are `lmcache.skip_save` (a boolean) and `lmcache.tag.NAME` (a text; the KV of requests with unlike
tags is kept apart).
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

FIELD = "kv_transfer_params"
SKIP_SAVE = "lmcache.skip_save"
# A tag becomes part of LMCache's keys, where @ and % are punctuation.
TAG = re.compile(r"lmcache\.tag\.[A-Za-z0-9_.:-]{1,64}")
TAG_VALUE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class KvTransferParams:
    """ASGI middleware, given to vLLM with `--middleware`.

    Messages: https://asgi.readthedocs.io/en/latest/specs/www.html
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
            messages.append(await receive())
        reason = refusal(b"".join(message.get("body", b"") for message in messages))
        if reason is not None:
            await _refuse(send, reason)
            return
        unread = iter(messages)

        async def replay() -> Message:
            message = next(unread, None)
            return await receive() if message is None else message

        await self.app(scope, replay, send)


def refusal(body: bytes) -> str | None:
    """Return in one sentence why a request must not reach vLLM, or None.

    What is no JSON, and every other field, is vLLM's to judge.
    """
    # Escapes can hide the name; without either there is nothing to parse, and long prompts cost nothing.
    if FIELD.encode() not in body and b"\\u" not in body:
        return None
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return next((reason for given in _given(request) if (reason := _wrong(given))), None)


def _given(value: Any) -> Iterator[Any]:
    """Every value of the field, wherever it stands in a request."""
    todo = [value]
    while todo:
        current = todo.pop()
        if isinstance(current, dict):
            if FIELD in current:
                yield current[FIELD]
            todo += current.values()
        elif isinstance(current, list):
            todo += (item for item in current if isinstance(item, dict | list))


def _wrong(given: Any) -> str | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        return f"expected an object in {FIELD} and found {_short(given)}"
    for name, value in given.items():
        if name == SKIP_SAVE:
            if not isinstance(value, bool):
                return f"expected true or false in {FIELD}['{name}'] and found {_short(value)}"
        elif not TAG.fullmatch(name):
            return f"expected {SKIP_SAVE} or lmcache.tag.NAME in {FIELD} and found {_short(name)}"
        elif not (isinstance(value, str) and TAG_VALUE.fullmatch(value)):
            return f"expected 1 to 64 letters, digits, _ . : - in {FIELD}['{name}'] and found {_short(value)}"
    return None


def _short(value: Any) -> str:
    return json.dumps(value)[:80]


async def _refuse(send: Send, reason: str) -> None:
    """Answer 400 in the form that vLLM's own errors have."""
    error = {"message": reason, "type": "BadRequestError", "param": FIELD, "code": 400}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
