"""Who has not the cluster's key, on a network without rules: whatever he sends, nothing of it happens."""

from __future__ import annotations

import json
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from kvshare.config.settings import MULTIPROCESS
from kvshare.contract import name_of_key
from kvshare.servers.http import Http, RefusedKeyError, RequestFailedError
from kvshare.servers.wait import poll
from tests.rig.network import DECODE, PREFILL
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import HOST_OF, Socket, Stack
from tests.scenarios.under_faults.strangers import zmtp
from tests.scenarios.under_faults.strangers.attempts import (
    BY_SHARING,
    DECODE_INSTANCE,
    MADE,
    STRANGER,
    Attempt,
    Attempts,
    Call,
    Order,
)
from tests.scenarios.under_faults.traffic import Traffic, as_operator, controller, registered

HERE = Path(__file__).parent
NOISE = os.urandom(10_000_000)
PARTS = tuple(zmtp.GREETING[:length] for length in range(0, len(zmtp.GREETING), 3))
ANOTHER = "5b" * 32  # a cluster key
COUNTED_S = 10
LOG_INTERVAL_S = 60  # of the patch pull-loop, which counts
LOGGED = re.compile(r"\[([\d-]+ [\d:]+),\d+\] .* message\(s\) on the port (\d+) socket could not be used")

pytestmark = pytest.mark.timeout(900)


def answered(one: Socket, attempt: Attempt | Order) -> str | None:
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


def is_served(call: Call) -> bool:
    """Whether a stranger is served over HTTP; RequestFailedError for neither 200 nor 401."""
    http = Http(call.base)
    try:
        as_operator(lambda: http.get(call.path) if call.body is None else http.post(call.path, call.body))
    except RefusedKeyError:
        return False
    return True


def refused_calls(stack: Stack) -> dict[tuple[str, int], float]:
    """What each port that serves HTTP has counted, by who counts it."""
    ports = {(one.owner, one.port) for one in attempts_of(stack).over_http}
    return {(owner, port): stack.rejected(owner).get(f"port {port}", 0.0) for owner, port in ports}


def attempts_of(stack: Stack) -> Attempts:
    return BY_SHARING[stack.machines.sharing]


def are_the_cluster(stack: Stack) -> bool:
    """Whether both nodes are known as whoever keeps KV, and the stranger is not."""
    if stack.machines.sharing == MULTIPROCESS:
        return registered(MULTIPROCESS) == {PREFILL.address, DECODE.address}
    return is_known(DECODE_INSTANCE) and not is_known(STRANGER)


def is_known(instance: str) -> bool:
    """Whether the controller has a worker of that name; the list of all is up to 30 s old."""
    try:
        told = as_operator(lambda: controller().get(f"/controller/workers?instance_id={instance}"))
    except RequestFailedError:
        return False
    return bool(json.loads(told)["workers"])


def turned_away(stack: Stack) -> dict[Socket, float]:
    """Strangers that each port has counted."""
    counts = {owner: stack.rejected(owner) for owner in HOST_OF}
    return {one: counts[one.owner].get(f"port {one.port}", 0.0) for one in stack.sockets}


def require_counted(stack: Stack, before: Mapping[Socket, float], sent: Mapping[Socket, int]) -> None:
    """Each port counts what strangers have sent it since."""

    def uncounted() -> dict[str, float]:
        counts = {one: now - before[one] for one, now in turned_away(stack).items()}
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
    pool, attempts = traffic.know(3), attempts_of(stack)
    every = list(attempts.of(stack.sockets))
    traffic.ask_all(DECODE, pool)
    with stack.survivors(*HOST_OF):
        counted, opened = turned_away(stack), dict.fromkeys(stack.sockets, len(PARTS))
        for one in stack.sockets:
            half_open(one)
        require_counted(stack, counted, opened)
        counted = turned_away(stack)
        assert [answered(*one) for one in every] == [None] * len(every)
        for one in stack.sockets:
            make_noise(one)
        sent = {one: len(attempts.messages[one.name]) + 1 for one in stack.sockets}
        require_counted(stack, counted, sent)
        refused = refused_calls(stack)
        assert [one for one in attempts.over_http if is_served(one)] == []
        calls = Counter((one.owner, one.port) for one in attempts.over_http)
        assert refused_calls(stack) == {port: before + calls[port] for port, before in refused.items()}
        assert are_the_cluster(stack)
        assert [gap for owner in HOST_OF for gap in too_often(stack.said_since_started(owner))] == []
        assert [owner for owner in HOST_OF if stack.has(owner, MADE)] == []
    recovery = traffic.seconds_until_reuse(30)
    injected = sum(sent.values()) + sum(opened.values()) + len(attempts.over_http)
    seen = record(figures.of(HERE, f"{len(stack.sockets)} ports", injected, traffic.sent, recovery))
    assert seen.failures == seen.wrong == 0, traffic.faulty()


def named_as_another(stack: Stack, key: Mapping[str, str], name: str) -> None:
    """Decode, started with another key than prefill, is named as that by whoever is asked."""
    machines = stack.machines
    started = machines.run("up", "decode", "--timeout", "60", **key)
    assert started.code == 2
    assert "has another cluster key than" in started.err
    assert "no: another cluster key" in machines.kvshare("status").out
    assert f"decode={name}" in machines.kvshare("doctor", "--only", "DOC-CONF-13").out
    verified = machines.verify()
    assert verified.code == 1, verified.said
    assert verified.report["cause"] == "CONF-13"


def test_a_node_of_another_key_is_named(stack: Stack, long: bool) -> None:
    if not long:
        pytest.skip("two more starts: make test-faults")
    try:
        named_as_another(stack, {"CLUSTER_KEY": ANOTHER}, name_of_key(ANOTHER))
    finally:
        stack.up()


def test_a_node_without_the_key_is_named_and_without_any_the_same_attempts_succeed(
    stack: Stack, long: bool
) -> None:
    """And code runs all the same for nobody."""
    off = {"CLUSTER_KEY_FILE": "off"}
    if not long:
        pytest.skip("three more starts: make test-faults")
    if stack.machines.sharing == MULTIPROCESS:
        refused = stack.machines.run("up", "decode", **off)
        assert (refused.code, "leave CLUSTER_KEY_FILE empty" in refused.err) == (2, True)
        return
    every, over_http = list(attempts_of(stack).of(stack.sockets)), attempts_of(stack).over_http
    try:
        named_as_another(stack, off, "none")
        # libzmq gives up a connection whose other end has no key where this one has, or the reverse.
        assert stack.machines.run("down", "decode").code == 0
        outcome = stack.machines.up(**off)
        assert outcome.code == 0, outcome.err
        assert [answered(*one) for one in every] == [attempt.answer for _, attempt in every]
        assert [one for one in over_http if not is_served(one)] == []
        assert is_known(STRANGER)
        assert [owner for owner in HOST_OF if stack.has(owner, MADE)] == []
    finally:
        stack.up()
