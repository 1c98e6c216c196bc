"""Who has not the cluster's key, on a network without rules: whatever he sends, nothing of it happens."""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvshare.servers.http import Http, RefusedKeyError, RequestFailedError
from kvshare.servers.wait import poll
from tests.rig.network import DECODE, OPERATOR
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import HOST_OF, SOCKETS, Socket, Stack, rejected
from tests.scenarios.under_faults.strangers import zmtp
from tests.scenarios.under_faults.traffic import CONTROLLER_URL, Traffic, as_operator, controller

HERE = Path(__file__).parent
STRANGER, PREFILL_INSTANCE, DECODE_INSTANCE = "stranger", "lmcache_instance_1", "lmcache_instance_2"
MADE = "/tmp/kvshare-made-by-a-stranger"
NOISE = os.urandom(10_000_000)
PARTS = tuple(zmtp.GREETING[:length] for length in range(0, len(zmtp.GREETING), 3))
COUNTED_S = 10
HTTP = "port 9000"  # as it is counted
SINCE_EVER = datetime.fromtimestamp(0, UTC)
LOG_INTERVAL_S = 60  # of the patch pull-loop, which counts
LOGGED = re.compile(r"\[([\d-]+ [\d:]+),\d+\] .* message\(s\) on the port (\d+) socket could not be used")

pytestmark = pytest.mark.timeout(900)


class WritesAFile:
    """Unpickled, it makes a folder."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (MADE,)


@dataclass(frozen=True)
class Attempt:
    """What a stranger sends, and what he is answered where there is no key: None by who only takes."""

    what: str
    type: str
    answer: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> bytes:
        return msgspec.msgpack.encode({"type": self.type, **self.fields})


def of_worker(instance: str, **fields: Any) -> dict[str, Any]:
    return {"instance_id": instance, "worker_id": 0, **fields}


PLACE, URL = {"ip": OPERATOR.address, "port": 1}, f"{OPERATOR.address}:1"
IN_MEMORY = "LocalCPUBackend"
ATTEMPTS = {
    "reply": (
        Attempt("register", "RegisterMsg", "RegisterRetMsg", of_worker(STRANGER, **PLACE)),
        Attempt(
            "look up", "BatchedP2PLookupMsg", "BatchedP2PLookupRetMsg", of_worker(STRANGER, hashes=[1])
        ),
    ),
    "heartbeat": (
        Attempt("take a worker's place", "HeartbeatMsg", "HeartbeatRetMsg", of_worker(STRANGER, **PLACE)),
    ),
    "pull": (
        Attempt(
            "claim", "BatchedKVOperationMsg", None,
            of_worker(
                STRANGER, location=IN_MEMORY, operations=[{"op_type": "admit", "key": 1, "seq_num": 0}]
            ),
        ),
        Attempt(
            "withdraw", "DeRegisterMsg", None, of_worker(DECODE_INSTANCE, ip=DECODE.address, port=8501)
        ),
    ),
    "worker": (
        Attempt(
            "move", "MoveWorkerMsg", "MoveWorkerRetMsg",
            {
                "worker_event_id": "e", "old_position": IN_MEMORY, "new_position": [URL, IN_MEMORY],
                "tokens": list(range(256)),
            },
        ),
        Attempt(
            "order", "ClearWorkerMsg", "ClearWorkerRetMsg", {"worker_event_id": "e", "location": IN_MEMORY}
        ),
    ),
    "p2p_init": (
        Attempt("be introduced", "P2PInitSideMsg", "P2PInitSideRetMsg"),
        Attempt(
            "run code", "NixlMemRegRequest", "",  # no key is needed for it to fail: patch descriptors
            {
                "remote_agent_name": b"nobody", "local_id": URL,
                "local_xfer_dlist_bytes": pickle.dumps(WritesAFile()),
            },
        ),
    ),
    "p2p_lookup": (
        # That much he is told; KV itself goes to who was introduced.
        Attempt(
            "pull", "BatchedLookupAndGetMsg", "P2PErrorMsg",
            {"lookup_id": "1", "receiver_id": STRANGER, "keys": [], "mem_indexes": []},
        ),
        Attempt(
            "push", "BatchedLookupAndPutMsg", "BatchedLookupAndPutRetMsg",
            {"sender_id": STRANGER, "keys": [], "offsets": [], "mem_indexes": []},
        ),
    ),
}  # fmt: skip
# Read or ordered over HTTP; prefill is cleared, which no other attempt takes away.
OVER_HTTP: tuple[tuple[str, dict[str, Any] | None], ...] = (
    *((path, None) for path in ("/", "/env", "/docs", "/metrics", "/controller/workers")),
    ("/lookup", {"tokens": list(range(256))}),
    ("/clear", {"instance_id": PREFILL_INSTANCE, "location": IN_MEMORY}),
)
ALL = [
    (one, attempt)
    for name, attempts in ATTEMPTS.items()
    for one in SOCKETS
    if one.name == name
    for attempt in attempts
]


def answered(one: Socket, attempt: Attempt) -> str | None:
    """The type of the answer that a stranger gets, from the host that has no part in the cluster."""
    answer = as_operator(lambda: zmtp.ask((one.host.address, one.port), one.role, attempt.message))
    if answer is None:
        return None
    return str(msgspec.msgpack.decode(answer)["type"]) if answer else ""


def make_noise(one: Socket) -> None:
    """10 MB of anything after the opening."""

    def act() -> None:
        address = (one.host.address, one.port)
        with socket.create_connection(address, timeout=zmtp.TIMEOUT_S) as noisy, suppress(OSError):
            noisy.sendall(zmtp.opening(one.role) + NOISE)

    as_operator(act)


def half_open(one: Socket) -> None:
    """Connections that stop in the midst of the opening, closed again."""

    def act() -> None:
        for part in PARTS:
            with socket.create_connection((one.host.address, one.port), timeout=zmtp.TIMEOUT_S) as half:
                half.sendall(part)

    as_operator(act)


def is_served(path: str, body: dict[str, Any] | None = None) -> bool:
    """Whether the controller's HTTP serves a stranger; RequestFailedError for neither 200 nor 401."""
    http = Http(CONTROLLER_URL)
    try:
        as_operator(lambda: http.get(path) if body is None else http.post(path, body))
    except RefusedKeyError:
        return False
    return True


def is_known(instance: str) -> bool:
    """Whether the controller has a worker of that name; the list of all is up to 30 s old."""
    try:
        told = as_operator(lambda: controller().get(f"/controller/workers?instance_id={instance}"))
    except RequestFailedError:
        return False
    return bool(json.loads(told)["workers"])


def turned_away() -> dict[Socket, float]:
    """Strangers that each port has counted."""
    counts = {owner: rejected(owner) for owner in HOST_OF}
    return {one: counts[one.owner].get(f"port {one.port}", 0.0) for one in SOCKETS}


def require_counted(before: Mapping[Socket, float], sent: Mapping[Socket, int]) -> None:
    """Each port counts what strangers have sent it since."""

    def uncounted() -> dict[str, float]:
        counts = {one: now - before[one] for one, now in turned_away().items()}
        return {f"{one.owner} {one.name}": count for one, count in counts.items() if count < sent[one]}

    assert poll(uncounted, lambda found: not found, COUNTED_S) == {}


def too_often(log: str) -> list[tuple[str, datetime, datetime]]:
    """Ports of which two lines about strangers are less than a minute apart."""
    lines = LOGGED.findall(log)
    assert lines, "strangers should be named in the log"
    at = {port: [datetime.fromisoformat(when) for when, of in lines if of == port] for _, port in lines}
    return [
        (port, first, then)
        for port, times in at.items()
        for first, then in pairwise(times)
        if (then - first).total_seconds() < LOG_INTERVAL_S - 1
    ]


def test_whoever_has_not_the_key_is_turned_away_counted_and_named_once_a_minute(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures]
) -> None:
    pool = traffic.know(3)
    traffic.ask_all(DECODE, pool)
    with stack.survivors(*HOST_OF):
        counted, opened = turned_away(), dict.fromkeys(SOCKETS, len(PARTS))
        for one in SOCKETS:
            half_open(one)
        require_counted(counted, opened)
        counted = turned_away()
        assert [answered(one, attempt) for one, attempt in ALL] == [None] * len(ALL)
        for one in SOCKETS:
            make_noise(one)
        sent = {one: len(ATTEMPTS[one.name]) + 1 for one in SOCKETS}
        require_counted(counted, sent)
        before = rejected("controller").get(HTTP, 0.0)
        assert [is_served(*attempt) for attempt in OVER_HTTP] == [False] * len(OVER_HTTP)
        assert rejected("controller")[HTTP] == before + len(OVER_HTTP)
        assert not is_known(STRANGER)
        assert is_known(DECODE_INSTANCE)
        assert [gap for owner in HOST_OF for gap in too_often(stack.said(owner, SINCE_EVER))] == []
        assert [owner for owner in HOST_OF if stack.has(owner, MADE)] == []
    recovery = traffic.seconds_until_reuse(30)
    injected = sum(sent.values()) + sum(opened.values()) + len(OVER_HTTP)
    seen = record(figures.of(HERE, f"{len(SOCKETS)} ports", injected, traffic.sent, recovery))
    assert seen.failures == seen.wrong == 0, traffic.faulty()


def named_as_another(stack: Stack) -> None:
    """Decode, started without the key, is named as that by whoever is asked."""
    machines = stack.machines
    started = machines.run("up", "decode", "--timeout", "60", CLUSTER_KEY_FILE="off")
    assert started.code == 2
    assert "has another cluster key than lmcache_instance_2" in started.err
    assert "no: another cluster key" in machines.kvshare("status").out
    assert "decode=none" in machines.kvshare("doctor", "--only", "DOC-CONF-13").out
    verified = machines.verify()
    assert verified.code == 1, verified.said
    assert verified.report["cause"] == "CONF-13"


def test_a_node_without_the_key_is_named_and_without_any_the_same_attempts_succeed(
    stack: Stack, long: bool
) -> None:
    """And code runs all the same for nobody."""
    if not long:
        pytest.skip("three more starts: make test-faults")
    try:
        named_as_another(stack)
        # libzmq gives up a connection whose other end has no key where this one has, or the reverse.
        assert stack.machines.run("down", "decode").code == 0
        outcome = stack.machines.up(CLUSTER_KEY_FILE="off")
        assert outcome.code == 0, outcome.err
        got = [answered(one, attempt) for one, attempt in ALL]
        assert got == [attempt.answer for _, attempt in ALL]
        assert [is_served(*attempt) for attempt in OVER_HTTP] == [True] * len(OVER_HTTP)
        assert is_known(STRANGER)
        assert [owner for owner in HOST_OF if stack.has(owner, MADE)] == []
    finally:
        stack.up()
