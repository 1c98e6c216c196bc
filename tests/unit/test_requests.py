"""What a request may tell LMCache: the rest is refused with 400 before vLLM sees it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docker/engine"))

from kvshare_engine.requests import KvTransferParams, refusal  # noqa: E402

WRONG: tuple[tuple[Any, str], ...] = (
    ({"disagg_spec": {}}, 'found "disagg_spec"'),
    ({"ret_first_tok": 1}, 'found "ret_first_tok"'),
    ({"do_remote_prefill": True}, 'found "do_remote_prefill"'),
    ({"lmcache.identity": "mine"}, 'found "lmcache.identity"'),
    ({"lmcache.tag.x": ["a"]}, 'found ["a"]'),
    ({"lmcache.tag.x": "a@b"}, 'found "a@b"'),
    ({"lmcache.tag.": "a"}, 'found "lmcache.tag."'),
    ({"lmcache.skip_save": "true"}, 'found "true"'),
    ("x", "expected an object in kv_transfer_params"),
    ([], "expected an object in kv_transfer_params"),
)
RIGHT: tuple[Any, ...] = (None, {}, {"lmcache.skip_save": True}, {"lmcache.tag.tenant": "a-1"})


def body(params: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "p", "kv_transfer_params": params}).encode()


def answer(content: bytes, pieces: int = 1, method: str = "POST") -> tuple[bytes | None, int | None]:
    """What the application behind the middleware reads, None if it is not asked; and the refusal's status."""
    size = max(1, -(-len(content) // pieces))
    parts = [content[i : i + size] for i in range(0, len(content), size)] or [b""]
    incoming = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, start=1)
    ]
    read: list[bytes] = []
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        more = True
        while more:
            message = await receive()
            read.append(message["body"])
            more = message["more_body"]

    asyncio.run(KvTransferParams(app)({"type": "http", "method": method}, receive, send))
    return (b"".join(read) if read else None), (sent[0]["status"] if sent else None)


@pytest.mark.parametrize(("params", "found"), WRONG)
def test_what_is_not_understood_is_refused_in_a_sentence(params: Any, found: str) -> None:
    reason = refusal(body(params))
    assert reason is not None
    assert found in reason
    assert answer(body(params)) == (None, 400)


@pytest.mark.parametrize("params", RIGHT)
def test_what_is_understood_reaches_vllm_unchanged(params: Any) -> None:
    assert answer(body(params)) == (body(params), None)


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_a_body_in_pieces_is_read_whole(pieces: int) -> None:
    assert answer(body({"disagg_spec": {}}), pieces) == (None, 400)
    assert answer(body({}), pieces) == (body({}), None)


def test_the_field_is_found_wherever_it_stands_and_however_it_is_spelled() -> None:
    smuggled = {"vllm_xargs": {"kv_transfer_params": "x"}}
    assert refusal(json.dumps(smuggled).encode())
    assert refusal(rb'{"kv_transfer\u005fparams": {"disagg_spec": {}}}')
    assert refusal(json.dumps([{"deep": [smuggled]}]).encode())


def test_what_is_no_json_is_left_to_vllm() -> None:
    assert answer(b"kv_transfer_params {") == (b"kv_transfer_params {", None)
    assert refusal(b"[" * 100_000 + b"kv_transfer_params") is None


def test_other_methods_pass() -> None:
    assert answer(b"", method="GET") == (b"", None)


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_every_other_request_passes(request: Any) -> None:
    assert refusal(json.dumps({"prompt": request}).encode()) is None
