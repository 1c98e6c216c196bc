"""With an API key vLLM's routes beside /v1 ask for it, but for health and metrics; without one none does."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docker/engine"))

from kvshare_engine.beside_v1 import Keyed

KEY = "sk-not-a-real-key"
PASSED = "the application's"
ASKING = (
    "/tokenize",
    "/docs",
    "/openapi.json",
    "/load",
    "/pause",
    "/",
    "//v1/x",
    "/health/x",
    "/metricsx",
    "/V1",
)


def ask(path: str, authorization: str | None = None, kind: str = "http", root: str = "") -> Any:
    """The status of the answer; ``PASSED`` where the application behind the middleware is asked."""
    answers: list[Any] = []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        answers.append(PASSED)

    async def receive() -> Any:
        raise AssertionError("a stranger's body is read")

    async def send(message: Any) -> None:
        answers.append(message.get("status", message["type"]))

    headers = [] if authorization is None else [(b"Authorization", authorization.encode())]
    scope = {"type": kind, "path": root + path, "root_path": root, "headers": headers, "method": "GET"}
    asyncio.run(Keyed(app)(scope, receive, send))
    return answers[0]


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("path", ASKING)
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer x", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer é"]
)
def test_a_stranger_is_refused(path: str, given: str | None) -> None:
    assert ask(path, given) == 401


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("path", ASKING)
@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer  {KEY} "])
def test_who_has_the_key_is_let_in(path: str, given: str) -> None:
    assert ask(path, given) == PASSED


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("path", ["/health", "/ping", "/metrics", "/metrics/", "/version", "/v1/models"])
@pytest.mark.parametrize("root", ["", "/behind"])
def test_health_and_metrics_are_read_without_and_v1_is_vllms_to_judge(path: str, root: str) -> None:
    assert ask(path, root=root) == PASSED


@pytest.mark.usefixtures("key")
def test_a_websocket_is_closed_and_the_application_still_starts() -> None:
    assert ask("/else", kind="websocket") == "websocket.close"
    assert ask("/v1/realtime", kind="websocket") == PASSED
    assert ask("", kind="lifespan") == PASSED


@pytest.mark.parametrize("path", ASKING)
def test_without_a_key_nothing_changes(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert ask(path) == PASSED
