"""What the gateway adds to a time to first token, against a server that computes nothing.

    .venv/bin/python -m benchmarks.cpu.gateway_overhead

The same clients ask the server and the gateway in turns, in one run, the order turned round every round, each
client 0.2 s after its last answer. Short prompts go to decode alone. Long ones, all different, the gateway
has prefill compute first; straight, the client asks prefill, then decode, so that prefill's own time is in
both. Server, gateway and clients are processes of one machine and share its cores.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import socket
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cpu import client_overhead
from kvshare.gateway.app import Gateway, serve
from kvshare.gateway.nodes import Node, Pool

CLIENTS, REQUESTS, ROUNDS, PAUSE_S = (1, 16, 64), 120, 4, 0.2
LEAST_TOKENS, SHORT, LONG = 256, 64, 4096
PROMPTS = {SHORT: "short", LONG: "prefilled first"}
FIRST = {"max_tokens": 1, "stream": False}  # what the gateway asks of prefill
_NUMBERS = itertools.count()


def _request(tokens: int, number: int, **changes: Any) -> bytes:
    fields = {"model": "m", "prompt": [number] * tokens, "max_tokens": 2, "stream": True, **changes}
    body = json.dumps(fields).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _serve(port: int, server: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(Node("prefill", server), (Node("decode", server),), Path(folder))
        serve(Gateway(pool, LEAST_TOKENS), "127.0.0.1", port)


async def _client(
    port: int, count: int, tokens: int, prefills: bool, delay_s: float, times: list[float]
) -> None:
    """Ask ``count`` times over one connection, ``prefills`` itself first or not; keep each TTFT in ms."""
    await asyncio.sleep(delay_s)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        number = next(_NUMBERS)
        first, request = _request(tokens, number, **FIRST), _request(tokens, number)
        sent = time.perf_counter()
        if prefills:
            writer.write(first)
            await reader.readuntil(b"}}")
        writer.write(request)
        await reader.readuntil(b"data: ")
        times.append((time.perf_counter() - sent) * 1000)
        await reader.readuntil(b"\r\n0\r\n\r\n")
        await asyncio.sleep(PAUSE_S)
    writer.close()


async def _ask(port: int, clients: int, tokens: int, prefills: bool) -> tuple[list[float], float]:
    """Return the times of all requests of so many clients, who begin in turn, and how many a second."""
    times: list[float] = []
    each = max(20, REQUESTS // clients) // ROUNDS
    began = time.perf_counter()
    delays = (PAUSE_S * n / clients for n in range(clients))
    await asyncio.gather(*(_client(port, each, tokens, prefills, delay_s, times) for delay_s in delays))
    return times, len(times) / (time.perf_counter() - began)


def measure() -> dict[str, Any]:
    """Return both ways' median and 99th percentile in ms, and requests a second, by prompt and clients."""
    context = multiprocessing.get_context("spawn")
    port: Queue[int] = context.Queue()
    with socket.create_server(("127.0.0.1", 0)) as free:
        gateway = free.getsockname()[1]
    started = [context.Process(target=client_overhead.serve, args=(port, 0.0), daemon=True)]
    started[0].start()
    server = port.get(timeout=30)
    started.append(context.Process(target=_serve, args=(gateway, f"http://127.0.0.1:{server}"), daemon=True))
    started[1].start()
    try:
        asyncio.run(_until_up(gateway))
        return {
            name: {str(clients): _both(server, gateway, clients, tokens) for clients in CLIENTS}
            for tokens, name in PROMPTS.items()
        }
    finally:
        for process in started:
            process.terminate()


def _both(server: int, gateway: int, clients: int, tokens: int) -> dict[str, float]:
    found: dict[str, list[float]] = {"direct": [], "gateway": []}
    rates: dict[str, list[float]] = {"direct": [], "gateway": []}
    ways = [("direct", server), ("gateway", gateway)]
    for _ in range(ROUNDS):
        for name, port in ways:
            prefills = name == "direct" and tokens >= LEAST_TOKENS
            times, rate = asyncio.run(_ask(port, clients, tokens, prefills))
            found[name] += times
            rates[name].append(rate)
        ways.reverse()
    return {
        **{f"{name}_ms": median(times) for name, times in found.items()},
        **{f"{name}_p99_ms": sorted(times)[int(len(times) * 0.99)] for name, times in found.items()},
        **{f"{name}_per_s": median(each) for name, each in rates.items()},
    }


async def _until_up(port: int) -> None:
    for _ in range(200):
        try:
            await _client(port, 1, SHORT, False, 0.0, [])
            return
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.05)
    raise SystemExit("the gateway did not answer in 10 s, so nothing was measured")


def section(found: dict[str, Any]) -> list[str]:
    """Return the section of docs/benchmarks.md."""
    rows = [
        f"| {prompts} | {clients} | {one['direct_ms']:.2f} | {one['gateway_ms']:.2f} "
        f"| {one['gateway_ms'] - one['direct_ms']:.2f} "
        f"| {one['direct_p99_ms']:.1f} | {one['gateway_p99_ms']:.1f} "
        f"| {one['direct_per_s']:.1f} | {one['gateway_per_s'] / one['direct_per_s']:.3f} |"
        for prompts, each in found.items()
        for clients, one in each.items()
    ]
    return [
        "",
        "## The gateway",
        "",
        "Time to first event in ms, straight and through the gateway, from a server that computes nothing;",
        f"both in one run, in turns, each client {PAUSE_S:g} s after its last answer, all on one machine's",
        "cores (`benchmarks/cpu/gateway_overhead.py`). A prompt that is prefilled first has",
        f"{LONG:,} tokens; straight, its client asks prefill, then decode. Beside the requests a second that",
        "were answered straight stands the gateway's share of them.",
        "",
        "| prompts | clients | straight | gateway | added | straight p99 | gateway p99 | req/s | share |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]


if __name__ == "__main__":
    print(json.dumps(measure()))
