"""LMCache's controller for probes: a running one, and how to ask it."""

from __future__ import annotations

import functools
import hmac
import itertools
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import zmq

from probes import ProbeError
from probes.forks import Fork

START_TIMEOUT_S = 240
REPLY_TIMEOUT_S = 20
FIRST_PORT, PORTS_OF_A_WORKER = 10_000, 2_000


@dataclass(frozen=True)
class Ports:
    http: int
    pull: int
    reply: int
    heartbeat: int


def free_ports() -> Ports:
    """Ports that nobody listens on, and that nobody else takes until who asked listens, seconds later.

    The kernel's own choice, from 32768 on, may be another process's a moment later.
    """
    return Ports(*itertools.islice(filter(_is_free, _of_this_process()), 4))


@functools.cache
def _of_this_process() -> Iterator[int]:
    """Each port of this worker of pytest again and again, from where no probe before it has begun."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first, begin = FIRST_PORT + PORTS_OF_A_WORKER * worker, 8 * os.getpid()
    return (first + (begin + number) % PORTS_OF_A_WORKER for number in itertools.count())


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextmanager
def running_controller(ports: Ports, key_file: str = "") -> Iterator[None]:
    """A running controller of this Python, of the cluster with that key, ended on leaving."""
    process = Fork(_serve, ports, key_file)
    try:
        _wait_until_it_answers(process, ports.http, key_file)
        yield
    finally:
        process.stop()


def _serve(_: Connection, ports: Ports, key_file: str) -> None:
    from lmcache.v1.api_server.__main__ import main

    os.environ["KVSHARE_CLUSTER_KEY_FILE"] = key_file
    monitor = json.dumps({"pull": ports.pull, "reply": ports.reply, "heartbeat": ports.heartbeat})
    sys.argv = ["", "--host=127.0.0.1", f"--port={ports.http}", f"--monitor-ports={monitor}"]
    main()


def _wait_until_it_answers(process: Fork, port: int, key_file: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.process.is_alive():
        try:
            get(port, "/controller/workers", key_file).close()
            return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise ProbeError(
        f"The controller did not answer within {START_TIMEOUT_S} s; its last lines:\n{process.last_lines()}"
    )


def request(port: int, message: Mapping[str, object]) -> object:
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


def get(http_port: int, path: str, key_file: str = "") -> HTTPResponse:
    """The answer to who has that cluster's key, or none; raises HTTPError for another status than 200."""
    headers = {"Authorization": f"Bearer {token_of(key_file)}"} if key_file else {}
    asked = urllib.request.Request(f"http://127.0.0.1:{http_port}{path}", headers=headers)
    answer: HTTPResponse = urllib.request.urlopen(asked, timeout=REPLY_TIMEOUT_S)
    return answer


def token_of(key_file: str) -> str:
    """What the controller asks for by HTTP, as every node derives it from the cluster's key."""
    key = bytes.fromhex(Path(key_file).read_text().strip())
    return hmac.digest(key, b"kvshare http", "sha256").hex()
