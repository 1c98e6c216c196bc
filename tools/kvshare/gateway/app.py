"""The gateway's HTTP side: what comes in is passed on unchanged, and so is what comes back."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import aiohttp
import msgspec
import uvloop
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from yarl import URL

from kvshare.gateway.nodes import Node, Pool
from kvshare.gateway.prompts import Prompt, Rates, read

LARGEST_BODY = 256 * 2**20  # bytes; vLLM itself has no limit, and a body is kept until it is answered
LARGEST_EVENT = 16 * 2**20
RETRY_AFTER_S = 5
CONNECT_S = 2.0
KEEP_ALIVE_S = 2.0  # less than the servers' 5: a connection that is reused is never one that they just closed
SHUTDOWN_S = 25.0
# A peer that is gone without a word is noticed after 11 s. While it has not acknowledged what it was sent,
# keepalive asks nothing; then the last of these counts.
SILENCE = {
    socket.TCP_KEEPIDLE: 5,
    socket.TCP_KEEPINTVL: 2,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 11_000,
}
BROKEN = (aiohttp.ClientError, OSError, TimeoutError)
# Of one connection, not of what it carries; the rest is passed on.
HOP_BY_HOP = (
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
)
OF_REQUESTS = frozenset((*HOP_BY_HOP, "host", "content-length", "content-encoding", "expect"))
OF_QUESTIONS = OF_REQUESTS | {"accept-encoding"}  # ours: what is answered is read here
OF_ANSWERS = frozenset((*HOP_BY_HOP, "content-length"))


class Metrics:
    """What /metrics shows."""

    def __init__(self, pool: Pool) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"kvshare_gateway_{name}", about, labels, registry=self.registry)

        self.answers = counter("answers", "Answers by server and status code", "node", "code")
        self.prefills = counter("prefills", "Prompts that prefill was sent first, by how it ended", "outcome")
        self.retries = counter("retries", "Requests that a server did not answer")
        self.broken = counter("broken_streams", "Streams that a server did not end")
        running = Gauge("kvshare_gateway_running", "Requests now", ("node",), registry=self.registry)
        up = Gauge("kvshare_gateway_up", "1: sent new requests", ("node",), registry=self.registry)
        for node in pool.nodes:
            running.labels(node.name).set_function(partial(getattr, node, "running"))
            up.labels(node.name).set_function(partial(getattr, node, "usable"))


class RefusalError(Exception):
    """A server's answer that another's may be better than: a status from 500 on."""

    def __init__(self, answer: web.StreamResponse) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Gateway:
    """One endpoint over the servers of a pool."""

    def __init__(self, pool: Pool, least_tokens: int | None) -> None:
        """Prepare; prompts go to prefill first from ``least_tokens`` new ones on, with None never."""
        self.pool, self.least_tokens = pool, least_tokens
        self.rates, self.metrics = Rates(), Metrics(pool)
        self.session: aiohttp.ClientSession

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._show_metrics)
        app.router.add_route("*", "/v1/{rest:.*}", self._pass)
        app.cleanup_ctx.append(self._running)
        return app

    async def _running(self, _: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE_S, socket_factory=_noticing_silence
        )
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            auto_decompress=False,
        ) as self.session:
            watch = asyncio.create_task(self.pool.watch(self.session))
            yield
            watch.cancel()

    async def _health(self, _: web.Request) -> web.Response:
        nodes = [
            {"name": n.name, "place": n.place, "up": n.up, "drained": n.drained, "running": n.running}
            for n in self.pool.nodes
        ]
        status = 200 if any(node.usable for node in self.pool.nodes) else 503
        return web.json_response({"nodes": nodes}, status=status)

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.metrics.registry), content_type="text/plain")

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        prompt = read(request.path, raw)
        blocks = prompt.blocks if prompt else ()
        node, tried = self.pool.pick(blocks), set[Node]()
        if node is not None and prompt is not None:
            with node.awaiting():
                await self._prefill_first(request, prompt, node)
            node = node if node.usable else self.pool.pick(blocks)
        answer = None
        while node is not None:
            tried.add(node)
            node.keep(blocks)
            try:
                with node.busy():
                    return await self._answer(request, raw, node)
            except RefusalError as refused:
                answer = refused.answer
            except BROKEN as error:
                self._failed(node, error)
            self.metrics.retries.inc()
            node = self.pool.pick(blocks, tried)
        return answer or self._nobody_left()

    async def _prefill_first(self, request: web.Request, prompt: Prompt, node: Node) -> None:
        """Let prefill compute a prompt of which ``node`` lacks enough; its failure is nobody's."""
        prefill = self.pool.prefill
        if self.least_tokens is None or node is prefill or not prefill.usable:
            return
        if prompt.size < self.least_tokens:  # a token has a byte or more
            return
        try:
            if not self.rates.knows(prompt):
                counted = await self._ask(prefill, "/tokenize", request, prompt.for_tokenize())
                self.rates.learn(prompt, int(counted["count"]))
            held = node.holds(prompt.blocks)
            if self.rates.tokens_of(prompt) * prompt.share_beyond(held) < self.least_tokens:
                return
            if prefill.running > node.running and prefill.holds(prompt.blocks) <= held:
                return  # it is done sooner where less runs
            prefill.keep(prompt.blocks)
            with prefill.busy():
                answer = await self._ask(prefill, request.raw_path, request, prompt.for_prefill())
            self.rates.learn(prompt, int(answer["usage"]["prompt_tokens"]))
            self.metrics.prefills.labels("computed").inc()
        except (*BROKEN, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            self.metrics.prefills.labels("failed").inc()
            if isinstance(error, BROKEN):
                self._failed(prefill, error)

    async def _ask(self, node: Node, path: str, request: web.Request, body: bytes) -> Any:
        """Return what a server answers to our own question; ValueError if that is a refusal."""
        headers = _without(request.headers, OF_QUESTIONS)
        async with self.session.post(
            URL(node.url + path, encoded=True), data=body, headers=headers
        ) as answer:
            said = await answer.read()
            if answer.status != 200:
                raise ValueError(f"{node.name} answers {answer.status}")
            return msgspec.json.decode(said)

    async def _answer(self, request: web.Request, raw: bytes, node: Node) -> web.StreamResponse:
        """Pass one server's answer on; as long as it raises, nothing has reached the client."""
        url = URL(node.url + request.raw_path, encoded=True)
        headers = _without(request.headers, OF_REQUESTS)
        async with self.session.request(
            request.method, url, data=raw or None, headers=headers, allow_redirects=False
        ) as upstream:
            passed = _without(upstream.headers, OF_ANSWERS)
            if upstream.content_type != "text/event-stream" or upstream.status >= 500:
                answer: web.StreamResponse = web.Response(
                    status=upstream.status, body=await upstream.read(), headers=passed
                )
                if upstream.status >= 500:
                    raise RefusalError(answer)
            else:
                first = await upstream.content.readany()
                answer = web.StreamResponse(status=upstream.status, headers=passed)
                with suppress(OSError):  # the client is gone; what the server does is seen inside
                    await answer.prepare(request)
                    await self._relay(upstream.content, answer, first, node)
            self.metrics.answers.labels(node.name, str(upstream.status)).inc()
            return answer

    async def _relay(
        self, source: aiohttp.StreamReader, answer: web.StreamResponse, chunk: bytes, node: Node
    ) -> None:
        """Pass whole events on as they come; where the server breaks off, one of ours says so."""
        rest = b""
        while chunk:
            rest += chunk
            end = rest.rfind(b"\n\n") + 2
            if end > 1 or len(rest) > LARGEST_EVENT:
                end = end if end > 1 else len(rest)
                await answer.write(rest[:end])
                rest = rest[end:]
            try:
                chunk = await source.readany()
            except BROKEN as error:
                self._failed(node, error)
                self.metrics.broken.inc()
                chunk, rest = b"", _event(f"{node.name} broke off its answer", 502)
        await answer.write(rest)

    def _failed(self, node: Node, error: Exception) -> None:
        print(f"gateway: {node.name}: {error or type(error).__name__}", flush=True)
        if isinstance(error, aiohttp.ClientConnectorError):
            node.lost()

    def _nobody_left(self) -> web.Response:
        self.metrics.answers.labels("none", "503").inc()
        body = _error("no server answers; try again", 503)
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        return web.Response(status=503, body=body, content_type="application/json", headers=headers)


def serve(gateway: Gateway, host: str, port: int) -> None:
    """Serve until SIGTERM; what runs then may still end."""
    web.run_app(
        gateway.app(),
        host=host,
        port=port,
        handler_cancellation=True,  # a client that hangs up ends what it asked for
        shutdown_timeout=SHUTDOWN_S,
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


def _noticing_silence(address: Any) -> socket.socket:
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in SILENCE.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _without(headers: CIMultiDictProxy[str] | Mapping[str, str], names: frozenset[str]) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    for name in names:
        kept.popall(name, None)
    return kept


def _error(message: str, code: int) -> bytes:
    """Return an error as vLLM words its own."""
    return msgspec.json.encode({"error": {"message": message, "type": "ServerError", "code": code}})


def _event(message: str, code: int) -> bytes:
    return b"data: " + _error(message, code) + b"\n\ndata: [DONE]\n\n"
