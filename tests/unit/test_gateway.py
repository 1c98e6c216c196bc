"""The gateway before servers of a few lines: what it passes on, whom it asks, what it does without them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import ClientPayloadError, ClientResponse, ClientSession, web
from aiohttp.test_utils import TestServer
from yarl import URL

from kvshare.gateway import nodes
from kvshare.gateway.app import Gateway, _noticing_silence, serve
from kvshare.gateway.nodes import Node, Pool
from kvshare.gateway.prompts import Rates, read

CHUNK = 256
LONG = list(range(3 * CHUNK))
SHORT = LONG[: CHUNK - 1]
HALF = LONG[: CHUNK // 2]
LATEST_S = 20.0  # by when what is to happen has
FOR_PREFILL = {"max_tokens": 1, "stream": False}
FLOOD = b"data: " + b"x" * 2**16 + b"\n\n"
EVENTS = [b'data: {"text": "a"}\n\n', b'data: {"text": "b"}\n\n', b"data: [DONE]\n\n"]


@dataclass
class Stub:
    """One server: what it was asked, and how it answers."""

    asked: list[tuple[str, bytes, Mapping[str, str]]] = field(default_factory=list)
    status: int = 200
    answer: bytes = b'{"odd":   "spaces", "usage": {"prompt_tokens": 768}, "choices": []}'
    breaks_after: int | None = None  # events of a stream
    flood: int | None = None  # bytes of an endless stream that were taken from it
    release: asyncio.Event = field(default_factory=asyncio.Event)  # holds a stream back after its first event
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    server: TestServer | None = None

    def __post_init__(self) -> None:
        self.release.set()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for path, body, _ in self.asked if path.startswith("/v1/")]

    async def respond(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/health":
            return web.Response()
        raw = await request.read()
        self.asked.append((request.raw_path, raw, request.headers))
        if request.path == "/tokenize":
            return web.json_response({"count": 768})
        try:
            if b'"stream": true' in raw and self.status == 200:
                return await self.stream(request)
            await self.release.wait()
        except asyncio.CancelledError:
            self.hung_up.set()
            raise
        headers = {"Content-Type": "application/json", "X-From": "a server"}
        return web.Response(status=self.status, body=self.answer, headers=headers)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while self.flood is not None:
            await response.write(FLOOD)
            self.flood += len(FLOOD)
        for number, event in enumerate(EVENTS):
            if number == self.breaks_after:
                if number:
                    await response.write(b"data: half an ev")
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(event)
            await self.release.wait()
        return response

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.close()


@dataclass
class Setup:
    """A gateway before its servers, and a client."""

    gateway: Gateway
    prefill: Stub
    decodes: list[Stub]
    url: str
    session: ClientSession

    async def post(
        self, body: bytes | dict[str, Any], path: str = "/v1/completions", **headers: str
    ) -> ClientResponse:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.session.post(URL(self.url + path, encoded=True), data=raw, headers=headers)

    async def asked_of(self, tokens: list[int], **more: Any) -> int:
        """Send a prompt; return the number of the decode node that answered."""
        before = [len(stub.asked) for stub in self.decodes]
        await (await self.post({"prompt": tokens, **more})).read()
        after = [len(stub.asked) for stub in self.decodes]
        return next(n for n, (b, a) in enumerate(zip(before, after, strict=True)) if a > b)


@asynccontextmanager
async def standing(folder: Path, decodes: int = 1, least_tokens: int | None = CHUNK) -> AsyncIterator[Setup]:
    async with AsyncExitStack() as undo:

        async def serve(app: web.Application) -> TestServer:
            server = TestServer(app)
            await server.start_server()
            undo.push_async_callback(server.close)
            return server

        stubs = [Stub() for _ in range(1 + decodes)]
        for stub in stubs:
            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", stub.respond)
            stub.server = await serve(app)
        names = ["prefill", *(f"decode-{n + 1}" for n in range(decodes))]
        first, *rest = (
            Node(name, str(s.server.make_url("")).rstrip("/"))
            for name, s in zip(names, stubs, strict=True)
            if s.server
        )
        gateway = Gateway(Pool(first, tuple(rest), folder), least_tokens)
        front = await serve(gateway.app())
        session = await undo.enter_async_context(ClientSession())
        yield Setup(gateway, stubs[0], stubs[1:], str(front.make_url("")).rstrip("/"), session)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    def ran(test: Callable[[Setup], Awaitable[None]], **more: Any) -> None:
        async def inside() -> None:
            async with standing(tmp_path, **more) as setup:
                await test(setup)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:  # as the process has it
            loop.run(asyncio.wait_for(inside(), 20))

    return ran


Run = Callable[..., None]


# What is passed on


def test_a_request_and_its_answer_pass_unchanged(run: Run) -> None:
    async def test(setup: Setup) -> None:
        body = b'{ "prompt" : "short",\t"cache_salt": "s", "n": 2, "logprobs":1, "unheard_of": [1.0, 1e3] }'
        headers = {"Authorization": "Bearer k", "X-Request-Id": "mine", "Content-Type": "application/json"}
        answer = await setup.post(body, "/v1/completions?a=%2F&b=", **headers)
        path, raw, seen = setup.decodes[0].asked[-1]
        assert (path, raw) == ("/v1/completions?a=%2F&b=", body)
        assert {name: seen[name] for name in headers} == headers
        assert (answer.status, await answer.read()) == (200, setup.decodes[0].answer)
        assert answer.headers["X-From"] == "a server"

    run(test)


def test_whatever_else_the_servers_have_under_v1_passes_and_nothing_else(run: Run) -> None:
    async def test(setup: Setup) -> None:
        models = await setup.session.get(f"{setup.url}/v1/models")
        assert (models.status, await models.read()) == (200, setup.decodes[0].answer)
        assert (await setup.post(b"\x00no json", "/v1/audio/transcriptions")).status == 200
        assert setup.decodes[0].asked[-1][1] == b"\x00no json"
        assert (await setup.session.get(f"{setup.url}/metrics")).status == 200
        assert (await setup.post(b"", "/run_script")).status == 404

    run(test)


def test_a_refusal_of_the_clients_own_making_passes_and_is_not_tried_elsewhere(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.decodes[0].status = setup.decodes[1].status = 400
        assert (await setup.post({"prompt": "x"})).status == 400
        assert sum(len(stub.asked) for stub in setup.decodes) == 1

    run(test, decodes=2)


def test_a_stream_passes_as_it_comes(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.decodes[0].release.clear()
        answer = await setup.post({"prompt": "x", "stream": True})
        assert await answer.content.readany() == EVENTS[0], "before the server has the next"
        setup.decodes[0].release.set()
        assert await answer.content.read() == b"".join(EVENTS[1:])

    run(test)


async def until_idle(setup: Setup) -> None:
    """Nothing of a client that went away is left; TimeoutError if something is."""
    async with asyncio.timeout(LATEST_S):
        while any(node.running for node in setup.gateway.pool.nodes):
            await asyncio.sleep(0.01)


def test_a_client_that_hangs_up_ends_what_it_asked_for(run: Run) -> None:
    async def test(setup: Setup) -> None:
        for body in ({"prompt": "x", "stream": True}, {"prompt": "x"}):
            decode = setup.decodes[0]
            decode.release.clear()
            decode.hung_up.clear()
            asked = asyncio.create_task(setup.post(body))
            if "stream" in body:
                (await asked).close()
            else:
                while len(decode.asked) < 2:
                    await asyncio.sleep(0.01)
                asked.cancel()
            await asyncio.wait_for(decode.hung_up.wait(), LATEST_S)
            await until_idle(setup)

    run(test)


def test_the_process_notices_such_a_client_as_the_servers_of_these_tests_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr(web, "run_app", lambda _, **given: options.update(given))
    serve(Gateway(Pool(Node("prefill", "http://127.0.0.1:1"), (), tmp_path), None), "127.0.0.1", 0)
    assert options["handler_cancellation"] is True
    assert isinstance(options["loop"], uvloop.Loop)
    options["loop"].close()


def test_neither_silence_nor_what_a_silent_server_was_sent_is_waited_for_beyond_11_s() -> None:
    with _noticing_silence((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count, unacknowledged_ms = (
            made.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT
            )
        )  # fmt: skip
    assert idle + interval * count == 11
    assert unacknowledged_ms == 11_000


def test_a_client_that_reads_nothing_holds_its_server_back_and_fills_no_memory(run: Run) -> None:
    async def test(setup: Setup) -> None:
        decode = setup.decodes[0]
        decode.flood = 0
        answer = await setup.post({"prompt": "x", "stream": True})
        before = -1
        while decode.flood > before:
            before = decode.flood
            await asyncio.sleep(0.3)
        assert before < 64 * 2**20, "what sockets and buffers of two hops hold"
        answer.close()
        await asyncio.wait_for(decode.hung_up.wait(), LATEST_S)
        await until_idle(setup)

    run(test)


# Prefill first


def test_a_long_prompt_is_computed_on_prefill_first_and_a_short_one_is_not(run: Run) -> None:
    async def test(setup: Setup) -> None:
        await (await setup.post({"prompt": SHORT})).read()
        assert not setup.prefill.asked
        body = {
            "model": "m",
            "prompt": LONG,
            "cache_salt": "s",
            "temperature": 0.5,
            "truncate_prompt_tokens": 9,
        }
        answers = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 99, "n": 2}
        await (await setup.post({**body, **answers, "logprobs": 1}, Authorization="Bearer k")).read()
        ((path, raw, headers),) = setup.prefill.asked
        assert (path, json.loads(raw)) == ("/v1/completions", {**body, **FOR_PREFILL})
        assert headers["Authorization"] == "Bearer k"
        assert setup.decodes[0].bodies[-1]["max_tokens"] == 99

    run(test)


def test_of_a_conversation_only_what_is_new_counts(run: Run) -> None:
    async def test(setup: Setup) -> None:
        for tokens in (LONG, LONG + HALF, LONG + HALF + LONG):
            await (await setup.post({"prompt": tokens})).read()
        assert [len(body["prompt"]) for body in setup.prefill.bodies] == [768, 768 + 128 + 768]

    run(test)


def test_how_long_a_text_is_comes_from_what_servers_counted(run: Run) -> None:
    async def test(setup: Setup) -> None:
        def turns(text: str) -> dict[str, Any]:
            return {"messages": [{"role": "user", "content": text}], "max_completion_tokens": 7}

        # /tokenize counts 768 of the first; so 2,000 bytes are too few, and 4,000 are enough.
        for size in (8000, 2000, 4000):
            await (await setup.post(turns(str(size) + "x" * (size - 4)), "/v1/chat/completions")).read()
        paths = [path for path, _, _ in setup.prefill.asked]
        assert paths == ["/tokenize", "/v1/chat/completions", "/v1/chat/completions"]
        assert setup.prefill.bodies[0]["max_tokens"] == 1
        assert "max_completion_tokens" not in setup.prefill.bodies[0]

    run(test)


def test_while_prefill_has_more_to_do_decode_computes_but_not_what_prefill_holds(run: Run) -> None:
    async def test(setup: Setup) -> None:
        prefill, decode = setup.prefill, setup.decodes[0]
        fresh = ({"prompt": [n, *LONG]} for n in range(10))
        sent = []

        async def after_sending(body: dict[str, Any]) -> tuple[int, int]:
            """Return how many requests prefill and decode have been sent, once there is one more."""
            before = len(prefill.asked) + len(decode.asked)
            sent.append(asyncio.create_task(setup.post(body)))
            while len(prefill.asked) + len(decode.asked) == before:
                await asyncio.sleep(0.01)
            return len(prefill.asked), len(decode.asked)

        prefill.release.clear()
        decode.release.clear()
        first = next(fresh)
        assert await after_sending(first) == (1, 0)
        assert await after_sending(next(fresh)) == (1, 1)
        assert await after_sending(next(fresh)) == (2, 1), "each has one"
        assert await after_sending({"prompt": [*first["prompt"], 7]}) == (3, 1), "prefill holds it"
        assert await after_sending(next(fresh)) == (3, 2)
        prefill.release.set()
        decode.release.set()
        assert {answer.status for answer in await asyncio.gather(*sent)} == {200}

    run(test)


def test_without_a_pull_nothing_is_computed_on_prefill(run: Run) -> None:
    async def test(setup: Setup) -> None:
        assert (await setup.post({"prompt": LONG})).status == 200
        assert not setup.prefill.asked

    run(test, least_tokens=None)


@pytest.mark.parametrize("broken", ["down", "refuses", "talks nonsense"])
def test_prefills_failure_is_nobodys(run: Run, broken: str) -> None:
    async def test(setup: Setup) -> None:
        setup.prefill.status = 500 if broken == "refuses" else 200
        setup.prefill.answer = b"nonsense"
        if broken == "down":
            await setup.prefill.stop()
        answer = await setup.post({"prompt": LONG})
        assert (answer.status, await answer.read()) == (200, setup.decodes[0].answer)
        seen = 'up{node="prefill"} 0' if broken == "down" else 'prefills_total{outcome="failed"} 1'
        assert seen in await metrics(setup)

    run(test)


# No request is lost


def test_what_a_server_does_not_answer_another_does_and_prefill_last(run: Run) -> None:
    async def test(setup: Setup) -> None:
        for stub, left in zip(setup.decodes, (setup.decodes[1], setup.prefill), strict=True):
            await stub.stop()
            answer = await setup.post({"prompt": "x"})
            assert (answer.status, len(left.asked)) == (200, 1)
        await setup.prefill.stop()
        answer = await setup.post({"prompt": "x"})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert (await answer.json())["error"]["code"] == 503
        assert (await setup.session.get(f"{setup.url}/health")).status == 503

    run(test, decodes=2)


def test_a_failing_server_is_asked_once_and_its_answer_passes_where_all_fail(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.decodes[0].status = setup.decodes[1].status = 500
        assert (await setup.post({"prompt": "x"})).status == 200
        setup.prefill.status = 501
        answer = await setup.post({"prompt": "x", "stream": True})
        assert (answer.status, await answer.read()) == (501, setup.prefill.answer)
        assert [len(stub.asked) for stub in (setup.prefill, *setup.decodes)] == [2, 2, 2]

    run(test, decodes=2)


def test_a_stream_that_breaks_before_its_first_event_is_asked_for_elsewhere(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.decodes[0].breaks_after = setup.decodes[1].breaks_after = 0
        answer = await setup.post({"prompt": "x", "stream": True})
        assert (answer.status, await answer.read()) == (200, b"".join(EVENTS))
        assert [len(stub.asked) for stub in (setup.prefill, *setup.decodes)] == [1, 1, 1]

    run(test, decodes=2)


def test_a_stream_that_breaks_later_ends_with_an_error_event_after_its_whole_ones(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.decodes[0].breaks_after = 1
        answer = await setup.post({"prompt": "x", "stream": True})
        first, error, done, nothing = (await answer.read()).split(b"\n\n")
        assert (first + b"\n\n", done, nothing) == (EVENTS[0], b"data: [DONE]", b"")
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == 502
        assert not setup.prefill.asked
        assert "broken_streams_total 1" in await metrics(setup)

    run(test)


def test_a_server_that_comes_back_is_used_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "WATCH_S", 0.02)

    async def test(setup: Setup) -> None:
        (decode,) = setup.gateway.pool.decodes
        decode.keep((1, 2))
        decode.lost()
        assert not decode.holds((1, 2)), "its cache is gone"
        while not decode.usable:
            await asyncio.sleep(0.01)

    run(test)


# Which decode node


def test_a_conversation_stays_where_its_cache_is_and_others_share_the_load(run: Run) -> None:
    async def test(setup: Setup) -> None:
        first = await setup.asked_of(LONG)
        assert await setup.asked_of([7, *LONG]) != first, "the one that was sent less"
        for _ in range(3):
            assert await setup.asked_of([*LONG, 8]) == first

    run(test, decodes=2)


def test_load_comes_before_what_is_held(tmp_path: Path) -> None:
    one, two = Node("decode-1", ""), Node("decode-2", "")
    pool = Pool(Node("prefill", ""), (one, two), tmp_path)
    one.keep((1, 2, 3))
    for running, chosen in ((0, one), (nodes.SLACK, one), (nodes.SLACK + 1, two)):
        one.running = running
        assert pool.pick((1, 2, 3)) is chosen


def test_a_salt_or_another_model_shares_nothing() -> None:
    same = {"prompt": LONG, "model": "m"}
    found = [
        read("/v1/completions", json.dumps({**same, **other}).encode())
        for other in ({}, {"max_tokens": 9}, {"cache_salt": "s"}, {"model": "lora"})
    ]
    first, *others = [prompt.blocks for prompt in found if prompt]
    assert [blocks == first for blocks in others] == [True, False, False]


def test_what_a_node_is_known_to_hold_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "BLOCKS_KEPT", 4)
    node = Node("decode", "")
    node.keep((1, 2, 3))
    node.keep((4, 5))
    assert (node.holds((1, 2, 3)), node.holds((4, 5)), len(node.held)) == (2, 2, 4)


def test_a_drained_node_ends_what_it_has_and_gets_no_more(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nodes, "WATCH_S", 0.02)

    async def state(setup: Setup) -> dict[str, Any]:
        answer = await (await setup.session.get(f"{setup.url}/health")).json()
        found: dict[str, Any] = next(node for node in answer["nodes"] if node["name"] == "decode-1")
        return found

    async def test(setup: Setup) -> None:
        drained, other = setup.decodes
        drained.release.clear()
        running = await setup.post({"prompt": "x", "stream": True})
        mark = tmp_path / setup.gateway.pool.decodes[0].place
        mark.touch()
        while not (await state(setup))["drained"]:
            await asyncio.sleep(0.01)
        assert (await state(setup))["running"] == 1
        for _ in range(4):
            await setup.asked_of(SHORT)
        assert (len(drained.asked), len(other.asked)) == (1, 4)
        drained.release.set()
        assert await running.read() == b"".join(EVENTS)
        await drained.stop()
        while mark.exists():
            await asyncio.sleep(0.01)

    run(test, decodes=2)


# What is no prompt that reuse is about


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'"x"', b'{"prompt": [-1]}', b'{"prompt": [[]]}', b'{"prompt": 5}'],
)
def test_what_a_server_will_refuse_is_passed_to_it(body: bytes) -> None:
    prompt = read("/v1/completions", body)
    assert prompt is None or not prompt.size


def test_pictures_do_not_count_as_text() -> None:
    parts = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": "x" * 9000}}]
    body = json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()
    prompt = read("/v1/chat/completions", body)
    assert prompt is not None
    assert prompt.size == len("what is it")


def test_the_longest_of_several_prompts_counts_and_prompt_logprobs_need_all_computed() -> None:
    prompt = read("/v1/completions", json.dumps({"prompt": [SHORT, LONG]}).encode())
    assert prompt is not None
    assert Rates().tokens_of(prompt) == 768
    assert read("/v1/completions", json.dumps({"prompt": LONG, "prompt_logprobs": 1}).encode()) is None


async def metrics(setup: Setup) -> str:
    return await (await setup.session.get(f"{setup.url}/metrics")).text()


def test_a_broken_answer_is_what_the_stub_makes(run: Run) -> None:
    """Without the gateway the same stream ends in an exception at the client."""

    async def test(setup: Setup) -> None:
        decode = setup.decodes[0]
        decode.breaks_after = 1
        assert decode.server is not None
        url = decode.server.make_url("/v1/completions")
        answer = await setup.session.post(url, data=b'{"stream": true}')
        with pytest.raises((ClientPayloadError, OSError)):
            await answer.read()

    run(test)
