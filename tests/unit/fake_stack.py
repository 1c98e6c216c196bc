"""A stand-in for the stack on loopback: two servers and a controller that keep the books as the real ones do.

It computes nothing, but it moves tokens between the same counters: a fresh prompt is computed, a known one
comes from the server's own cache, and decode takes from prefill what the controller knows of. Faults are
switches.
"""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kvshare.servers.completion import VLLM_ONLY
from kvshare.verify.evidence import Spec
from tests.unit.build import KV_BYTES, output

BLOCK, CHUNK = 16, 256
LATEST_S = 20.0  # by when clients have come that are to come, or hung up that are to hang up
Tokens = tuple[int, ...]
Identity = tuple[str, str | None]  # whose KV it is: model, and salt if it is not vLLM's alone


@dataclass
class Server:
    """One vLLM server with its counters."""

    instance: str
    healthy: bool = True
    fail_requests: bool = False
    model: str = "m"
    version: str = "0.32.0"
    min_tokens: int = 0  # P2P_MIN_TOKENS
    dies_after: int | None = None  # requests, after which neither its API nor its health answers
    first_token_s: float = 0.02
    token_s: float = 0.0
    answered: int = 0
    seen: set[tuple[Tokens, str, str | None]] = field(default_factory=set)
    local_compute: int = 0
    local_cache_hit: int = 0
    external: int = 0
    hit_tokens: int = 0
    transfers: int = 0
    copies: int = 0
    sent: int = 0  # bytes, as NIXL counts them
    memory: tuple[int, int] | None = (20, 128)  # blocks, and tokens in each
    running: int = 0
    preemptions: int = 0
    keeps: bool = False  # the request of a client that hangs up
    outlasts: bool = False  # its clients: an answer goes on once they have hung up
    meeting: threading.Barrier | None = None  # of requests, none of which is answered before all have come
    beside: bool = False  # LMCache runs in a process of its own
    stored: int = 0  # chunks

    @property
    def alive(self) -> bool:
        return self.healthy and (self.dies_after is None or self.answered < self.dies_after)

    def metrics(self) -> str:
        sources = {
            "local_compute": self.local_compute,
            "local_cache_hit": self.local_cache_hit,
            "external_kv_transfer": self.external,
        }
        lines = ["# TYPE vllm:prompt_tokens_by_source counter"]
        for source, value in sources.items():
            labels = f'engine="0",model_name="m",source="{source}"'
            lines.append(f"vllm:prompt_tokens_by_source_total{{{labels}}} {value}.0")
        lines += [
            "# TYPE lmcache:num_hit_tokens counter",
            f'lmcache:num_hit_tokens_total{{worker_id="0"}} {self.hit_tokens}.0',
            "# TYPE lmcache:retrieve_hit_rate gauge",
            'lmcache:retrieve_hit_rate{worker_id="0"} 1.0',
            "# TYPE lmcache:p2p_time_to_transfer histogram",
            f'lmcache:p2p_time_to_transfer_bucket{{le="+Inf",worker_id="0"}} {self.transfers}.0',
            f'lmcache:p2p_time_to_transfer_count{{worker_id="0"}} {self.transfers}.0',
            f'lmcache:p2p_time_to_transfer_sum{{worker_id="0"}} {self.transfers * 0.05}',
            "# TYPE lmcache:time_to_retrieve histogram",
            f'lmcache:time_to_retrieve_count{{worker_id="0"}} {self.copies}.0',
            f'lmcache:time_to_retrieve_sum{{worker_id="0"}} {self.copies * 0.002}',
            f'lmcache:local_cache_usage{{worker_id="0"}} {3.0 * CHUNK * KV_BYTES}',
            'lmcache:active_memory_objs_count{worker_id="0"} 3.0',
            f'agent_tx_bytes_total{{agent_name="lane 1"}} {self.sent - self.sent // 2}',
            f'agent_tx_bytes_total{{agent_name="lane 2"}} {self.sent // 2}',
        ]
        for name, seconds in (("request_queue", 0.004), ("request_prefill", 0.014), ("request_decode", 0.0)):
            lines += [
                f'vllm:{name}_time_seconds_count{{engine="0"}} {self.answered}.0',
                f'vllm:{name}_time_seconds_sum{{engine="0"}} {self.answered * seconds}',
            ]
        lines.append(f'vllm:num_requests_running{{engine="0"}} {self.running}.0')
        lines.append(f'vllm:num_preemptions_total{{engine="0"}} {self.preemptions}.0')
        if self.memory is not None:
            blocks, size = self.memory
            lines.append(f'vllm:cache_config_info{{block_size="{size}",num_gpu_blocks="{blocks}"}} 1.0')
        lines.append(f'vllm:time_to_first_token_seconds_sum{{engine="0"}} {self.answered * 0.019}')
        own = (line for line in lines if not self.beside or "vllm:" in line)
        return "\n".join(own) + "\n"


@dataclass
class FakeStack:
    """The three parts and their faults."""

    prefill: Server = field(default_factory=lambda: Server("lmcache_instance_1"))
    decode: Server = field(default_factory=lambda: Server("lmcache_instance_2"))
    controller_up: bool = True
    pull_loop_alive: bool = True
    cache_full: bool = False
    messages: int = 0
    pending: bool = False
    known: set[tuple[Tokens, Identity]] = field(default_factory=set)
    adapters: tuple[str, ...] = ()
    knows_identity: bool = True  # without it everybody's KV is everybody's
    preempts: bool = True
    keys: int = 12
    max_model_len: int = 1600
    api_key: str | None = None
    token: str | None = None  # what the controller asks for
    gateway: str = ""  # its URL, once it is served
    request_ids: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(
        self, server: Server, prompt: Tokens, salt: str | None = None, model: str = "m", kept: bool = True
    ) -> None:
        """Keep the books of one request; a salt for vLLM alone hides its own cache, not LMCache's."""
        server.answered += 1
        of = (model, None if salt is None or salt.startswith(VLLM_ONLY) else salt)
        of = of if self.knows_identity else ("", None)
        whole = len(prompt) // CHUNK * CHUNK
        if (prompt, model, salt) in server.seen:
            cached = len(prompt) // BLOCK * BLOCK
            server.local_cache_hit += cached
            server.local_compute += len(prompt) - cached
        elif whole and (prompt, of) in self.known and self._reaches(server, salt, whole):
            taken = min(whole, len(prompt) - 1)
            server.external += taken
            server.local_compute += len(prompt) - taken
            server.copies += 1
            if server is self.decode and not (salt or "").startswith(VLLM_ONLY):
                server.hit_tokens += whole
                self.prefill.transfers += 1
                self.prefill.sent += whole * KV_BYTES
        else:
            server.local_compute += len(prompt)
        server.seen.add((prompt, model, salt))
        if kept and server is self.prefill and (prompt, of) not in self.known:
            self._admit((prompt, of), whole)

    def _reaches(self, server: Server, salt: str | None, whole: int) -> bool:
        """Whether a server takes KV that prefill is known to hold."""
        return salt is not None or (server is self.decode and whole >= server.min_tokens)

    @contextmanager
    def busy(self, server: Server) -> Iterator[None]:
        """One request more; where there are more than memory is for, one is preempted."""
        with self.lock:
            server.running += 1
            blocks, _ = server.memory or (0, 0)
            server.preemptions += self.preempts and server.running > blocks // 3
        try:
            yield
        except OSError:  # the client went away
            if server.keeps:
                return
        with self.lock:
            server.running -= 1

    def _admit(self, kv: tuple[Tokens, Identity], whole: int) -> None:
        if not self.pull_loop_alive:
            self.pending = True
            return
        self.messages += 1
        self.known.add(kv)
        self.prefill.stored += whole // CHUNK
        if not self.cache_full:
            self.keys += whole // CHUNK


def _handler(stack: FakeStack, server: Server | None, gateway: bool = False) -> type[BaseHTTPRequestHandler]:
    """Answers for a server, or for the controller; the gateway has prefill compute it first."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # many small writes, each waited for

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            if server is None and not self._allowed():
                self._send(401, '{"detail": "expected a bearer token"}')
            elif server is None:
                self._controller()
            elif self.path == "/health":
                self._send(200 if server.alive else 503, "")
            elif self.path == "/metrics":
                self._send(200, server.metrics())
            elif self.path == "/version":
                self._send(200, json.dumps({"version": server.version}))
            elif not self._allowed():
                self._send(401, '{"error": "Unauthorized"}')
            else:
                card = {"id": server.model, "max_model_len": stack.max_model_len}
                adapters = [{"id": name, "parent": server.model} for name in stack.adapters]
                self._send(200, json.dumps({"data": [card, *adapters]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server is None:
                found = any(tuple(body["tokens"]) == prompt for prompt, _ in stack.known)
                layout = {stack.prefill.instance: ["LocalCPUBackend", len(body["tokens"]) // CHUNK * CHUNK]}
                self._send(200, json.dumps({"event_id": "x", "layout_info": layout if found else {}}))
            elif not self._allowed():
                self._send(401, '{"error": "Unauthorized"}')
            elif server.fail_requests or not server.alive:
                self._send(500, '{"error": "EngineCore died"}')
            else:
                stack.request_ids.append(self.headers["X-Request-Id"])
                with stack.busy(server):
                    self._stream(body)

        def _allowed(self) -> bool:
            wanted = stack.token if server is None else stack.api_key
            return wanted is None or self.headers["Authorization"] == f"Bearer {wanted}"

        def _stream(self, body: dict[str, Any]) -> None:
            prompt = tuple(body["prompt"])
            assert server is not None
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self._event(
                {"choices": [{"text": "", "logprobs": None}]}
            )  # vLLM may send a chunk without a token
            time.sleep(server.first_token_s)
            if server.outlasts:
                select.select([self.connection], [], [], LATEST_S)
            if server.meeting:
                server.meeting.wait(LATEST_S)
            continuous = body["stream_options"].get("continuous_usage_stats", False)
            for number, position in enumerate(output(sum(prompt), tokens=body["max_tokens"]), start=1):
                if number > 1:
                    time.sleep(server.token_s)
                top = {f"token_id:{token}": logprob for token, logprob in position.top}
                logprobs = {"tokens": [f"token_id:{position.token}"], "top_logprobs": [top]}
                usage = {"usage": self._usage(prompt, number)} if continuous else {}
                self._event({"choices": [{"text": "", "logprobs": logprobs}], **usage})
            with stack.lock:
                kept = not body.get("kv_transfer_params", {}).get("lmcache.skip_save", False)
                if gateway:
                    stack.answer(stack.prefill, prompt)
                stack.answer(server, prompt, body.get("cache_salt"), body["model"], kept)
            self._event({"choices": [], "usage": self._usage(prompt, body["max_tokens"])})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

        def _usage(self, prompt: tuple[int, ...], tokens: int) -> dict[str, int]:
            return {"prompt_tokens": len(prompt), "completion_tokens": tokens}

        def _event(self, data: dict[str, Any]) -> None:
            self._chunk(f"data: {json.dumps(data)}\n\n".encode())

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        def _controller(self) -> None:
            if not stack.controller_up:
                self._send(503, "")
            elif self.path == "/metrics":
                name = "lmcache:cache_controller_pull_socket"
                pending = int(stack.pending)
                self._send(200, f"{name}_message_count {stack.messages}.0\n{name}_has_pending {pending}.0\n")
            else:
                keys = ((stack.prefill, stack.keys), (stack.decode, 0))
                workers = [
                    {"instance_id": s.instance, "peer_init_url": "127.0.0.1:8200", "key_count": n}
                    for s, n in keys
                ]
                self._send(200, json.dumps({"workers": workers, "total_count": 2}))

        def _send(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

    return Handler


@contextmanager
def serve(stack: FakeStack) -> Iterator[Spec]:
    """Serve the stack on free loopback ports; yield the task that points there."""
    handlers = [_handler(stack, server) for server in (stack.prefill, stack.decode, None)]
    handlers.append(_handler(stack, stack.decode, gateway=True))
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in handlers]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    prefill, decode, controller, stack.gateway = (
        f"http://127.0.0.1:{server.server_port}" for server in servers
    )
    try:
        yield Spec(
            prefill=prefill,
            decode=decode,
            controller=controller,
            prefill_instance=stack.prefill.instance,
            decode_instance=stack.decode.instance,
            prompts=2,
            prompt_tokens=2 * CHUNK + 10,
            chunk_size=CHUNK,
            seed=1,
            nixl=prefill,  # of which the stand-in's /metrics has all
        )
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
