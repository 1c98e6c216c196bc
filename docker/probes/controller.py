"""LMCache's controller for probes: a running one, and how to ask it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import IO

import msgspec
import zmq

from probes import ProbeError

START_TIMEOUT_S = 240
REPLY_TIMEOUT_S = 20
STOP_TIMEOUT_S = 10
START = """
from probes import leave_out_slow_imports
leave_out_slow_imports()
from lmcache.v1.api_server.__main__ import main
main()
"""


@dataclass(frozen=True)
class Ports:
    http: int
    pull: int
    reply: int
    heartbeat: int


def free_ports() -> Ports:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        return Ports(*(s.getsockname()[1] for s in sockets))


@contextmanager
def running_controller(ports: Ports) -> Iterator[None]:
    """A running controller of this Python, ended on leaving."""
    monitor = json.dumps({"pull": ports.pull, "reply": ports.reply, "heartbeat": ports.heartbeat})
    command = [sys.executable, "-c", START, "--host=127.0.0.1", f"--port={ports.http}"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, f"--monitor-ports={monitor}"],
            cwd=Path(__file__).parents[1],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_it_answers(process, ports.http, log)
            yield
        finally:
            _stop(process)


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: IO[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            get(port, "/controller/workers").close()
            return
        except urllib.error.URLError:
            time.sleep(0.2)
    log.seek(0)
    last_lines = "".join(log.readlines()[-15:])
    raise ProbeError(
        f"lmcache_controller did not answer within {START_TIMEOUT_S} s; its last lines:\n{last_lines}"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def request(port: int, message: dict[str, object]) -> object:
    """The controller's decoded answer to one message."""
    context = zmq.Context()
    client = context.socket(zmq.REQ)
    client.setsockopt(zmq.LINGER, 0)
    client.setsockopt(zmq.RCVTIMEO, REPLY_TIMEOUT_S * 1000)
    try:
        client.connect(f"tcp://127.0.0.1:{port}")
        client.send(msgspec.msgpack.encode(message))
        return msgspec.msgpack.decode(client.recv())
    except zmq.Again:
        return f"nothing within {REPLY_TIMEOUT_S} s"
    finally:
        client.close()
        context.term()


def is_registered(worker: str, http_port: int) -> bool:
    # Asked for by name: the list of all workers is cached for 30 s.
    try:
        with get(http_port, f"/controller/workers?instance_id={worker}") as answer:
            return [entry["instance_id"] for entry in json.load(answer)["workers"]] == [worker]
    except urllib.error.HTTPError:
        return False


def get(http_port: int, path: str) -> HTTPResponse:
    answer: HTTPResponse = urllib.request.urlopen(
        f"http://127.0.0.1:{http_port}{path}", timeout=REPLY_TIMEOUT_S
    )
    return answer
