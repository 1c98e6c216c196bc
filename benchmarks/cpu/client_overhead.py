"""What the client itself adds to a token's time, against a server that computes nothing.

    .venv/bin/python -m benchmarks.cpu.client_overhead                64 streams, 128 tokens each, 20 ms apart
    .venv/bin/python -m benchmarks.cpu.client_overhead --streams 1

The server, a process of its own, writes each token's moment into the token's own text (one clock, the
machine's), so a token's overhead is the time from its writing to its stamp in the client. Prints JSON;
`cpu_ms` is the client's own processor time a token, which a busy machine does not disturb.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from multiprocessing.queues import Queue
from typing import Any
from unittest.mock import patch

from kvshare.bench import load, stats
from kvshare.servers.completion import Ask
from kvshare.servers.http import Http, Stream

PROMPT_TOKENS = 522


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gap_s: float) -> None:
    """Answer each request of a kept connection with a stream of tokens ``gap_s`` seconds apart."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET "):  # whether it is healthy
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                continue
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            body = json.loads(await reader.readexactly(length))
            if not body.get("stream"):
                usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
                said = json.dumps({"choices": [{"text": ""}], "usage": usage}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))
                continue
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            started = time.perf_counter()
            for number in range(1, body["max_tokens"] + 1):
                await asyncio.sleep(max(0.0, started + number * gap_s - time.perf_counter()))
                usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": number}
                _chunk(writer, {"choices": [{"text": f"{time.perf_counter():.9f}"}], "usage": usage})
                await writer.drain()
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            await writer.drain()
    except asyncio.IncompleteReadError:
        pass
    finally:
        writer.close()


def _chunk(writer: asyncio.StreamWriter, data: object) -> None:
    event = f"data: {json.dumps(data)}\n\n".encode()
    writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")


def serve(port: Queue[int], gap_s: float) -> None:
    """Serve on a free port, which it tells, for good."""

    async def run() -> None:
        server = await asyncio.start_server(lambda r, w: _answer(r, w, gap_s), "127.0.0.1", 0, backlog=512)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def measure(streams: int, tokens: int, gap_s: float) -> dict[str, float]:
    """Return the client's overhead a token in ms, over all tokens of all streams at once."""
    context = multiprocessing.get_context("spawn")
    port: Queue[int] = context.Queue()
    server = context.Process(target=serve, args=(port, gap_s), daemon=True)
    server.start()
    late: list[float] = []
    original = Http.stream

    def watched(http: Http, *task: Any) -> Stream:
        stream = original(http, *task)
        # perf_counter is the machine's monotonic clock on Linux, the same in every process.
        late.extend(
            (arrived - float(json.loads(data)["choices"][0]["text"])) * 1000
            for arrived, data in stream.events
        )
        return stream

    try:
        url = f"http://127.0.0.1:{port.get(timeout=30)}"
        asks = [Ask(f"overhead-{n}", (7,) * PROMPT_TOKENS, tokens) for n in range(streams)]
        with patch.object(Http, "stream", watched):
            used = time.process_time()
            done = load.send(asks, url, "m", None, streams)
            used = time.process_time() - used
    finally:
        server.terminate()
    failed = [request.error for request in done.requests if request.error]
    if failed:
        raise SystemExit(f"{len(failed)} of {streams} streams failed, so nothing was measured: {failed[0]}")
    found = stats.distribution([late])
    assert found is not None
    return {
        "streams": streams,
        "tokens": found.count,
        "mean_ms": found.mean,
        "p50_ms": found.p50,
        "p99_ms": found.p99,
        "cpu_ms": used / found.count * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--gap-ms", type=float, default=20.0)
    options = parser.parse_args()
    print(json.dumps(measure(options.streams, options.tokens, options.gap_ms / 1000)))


if __name__ == "__main__":
    main()
