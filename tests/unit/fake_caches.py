"""Beside the stand-in for the stack: cache servers and a coordinator, as SHARING=multiprocess has them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kvshare.verify.evidence import Spec
from tests.unit.build import KV_BYTES
from tests.unit.fake_stack import CHUNK, FakeStack, Server

ADDRESSES = {"prefill": "127.0.0.1:8200", "decode": "127.0.0.1:8202"}  # that peers read KV from


@dataclass
class FakeCaches:
    """The cache servers of a stand-in, and their faults."""

    stack: FakeStack
    peers: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"prefill": (ADDRESSES["decode"],), "decode": (ADDRESSES["prefill"],)}
    )
    listed: tuple[str, ...] = tuple(ADDRESSES.values())
    up: bool = True
    counts: bool = True
    locked: int = 0

    def server(self, node: str) -> Server:
        return self.stack.prefill if node == "prefill" else self.stack.decode

    def answer(self, node: str, path: str) -> str | None:
        """What the coordinator (of no node) or a cache server says; None: it is down."""
        if not self.up:
            return None
        if path == "/instances":
            listed = [{"instance_id": f"id of {url}", "p2p_advertised_url": url} for url in self.listed]
            return json.dumps({"instances": listed})
        return self.metrics(node) if path == "/metrics" else json.dumps(self.status(node))

    def status(self, node: str) -> dict[str, object]:
        adapters = [
            {"type": "P2PL2Adapter", "peer_transfer_channel_server_url": url} for url in self.peers[node]
        ]
        held = {
            "total_object_count": 3,
            "memory_used_bytes": 3 * CHUNK * KV_BYTES,
            "read_locked_count": self.locked,
            "write_locked_count": 0,
        }
        storage = {"l1_manager": held, "l2_adapters": adapters}
        return {"p2p_state": "registered", "storage_manager": storage}

    def metrics(self, node: str) -> str:
        server, other = self.server(node), self.server("decode" if node == "prefill" else "prefill")
        pulled = server.hit_tokens * KV_BYTES
        labels = '{cache_salt="",model_name="m"}'
        counted = {
            'lmcache_mp_l1_write_chunks_total{l1_tag="_default"}': server.stored,
            f"lmcache_mp_lookup_hit_tokens_total{labels}": server.hit_tokens,
            f"lmcache_mp_lookup_requested_tokens_total{labels}": server.hit_tokens,
            "lmcache_mp_p2p_served_objects_total": other.hit_tokens // CHUNK if self.counts else 0,
            f'lmcache_mp_p2p_pulled_bytes_total{{peer="{self.peers[node][0]}"}}': pulled,
            'agent_tx_bytes_total{agent_name="a"}': 0,
            'agent_rx_bytes_total{agent_name="a"}': pulled,
        }
        return "".join(f"{name} {value}\n" for name, value in counted.items())


def _handler(answer: Callable[[str], str | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            said = answer(self.path)
            body = (said or "").encode()
            self.send_response(503 if said is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def beside(caches: FakeCaches, spec: Spec) -> Iterator[Spec]:
    """Serve them beside the stand-in that a task points to; yield the task that points there too."""

    def served(node: str) -> ThreadingHTTPServer:
        return ThreadingHTTPServer(("127.0.0.1", 0), _handler(lambda path: caches.answer(node, path)))

    caches.stack.prefill.beside = caches.stack.decode.beside = True
    servers = {node: served(node) for node in ("coordinator", "prefill", "decode")}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    urls = {node: f"http://127.0.0.1:{server.server_port}" for node, server in servers.items()}
    try:
        yield replace(
            spec,
            controller=urls.pop("coordinator"),
            prefill_instance=ADDRESSES["prefill"],
            decode_instance=ADDRESSES["decode"],
            caches=urls,
            nixl=urls["decode"],
        )
    finally:
        for server in servers.values():
            server.shutdown()
            server.server_close()
