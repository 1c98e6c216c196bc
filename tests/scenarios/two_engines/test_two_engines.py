"""Two machines through Docker contexts; in this order, each test leaves the next its stack."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.rig import engines, network
from tests.rig.network import DECODE, PREFILL, Link
from tests.rig.sshd import SshServer
from tests.scenarios.conftest import Outcome, TwoMachines
from tests.scenarios.two_engines.conftest import KEY
from tests.scenarios.two_engines.machines import nothing_named, nothing_runs, over_ssh, refuses_the_key
from tests.scenarios.under_faults.traffic import ADMITTED_S, CHUNKS_OF_TOKENS, Traffic

IN_A_ROW, IN_A_ROW_LONG = 2, 20
GIGABIT, SLOW = Link(rate=1e9 / 8, delay=0.0025), Link(rate=40e6 / 8)

pytestmark = pytest.mark.timeout(900)


# Before anything is up: what is refused, and that nothing was started.


def test_a_context_that_does_not_exist_is_refused(rig: TwoMachines) -> None:
    outcome = rig.up(DECODE_CONTEXT="kvshare-nowhere")
    assert outcome.code == 2
    assert "Docker has no context kvshare-nowhere" in outcome.err
    assert nothing_runs()


def test_two_decode_nodes_on_one_context_are_refused(rig: TwoMachines) -> None:
    context = engines.context_of(DECODE)
    outcome = rig.up(DECODE_HOSTS="192.168.110.97,192.168.110.98", DECODE_CONTEXTS=f"{context},{context}")
    assert outcome.code == 2
    assert f"decode-1 and decode-2 both want port 8011 on context {context}" in outcome.err
    assert nothing_runs()


class OldEngine(BaseHTTPRequestHandler):
    """Answers as Debian 12's own engine does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("/")[-1]
        about = {
            "Name": "old-box",
            "ServerVersion": "20.10.24",
            "SystemTime": "2026-11-24T10:00:00.123456789Z",
            "DockerRootDir": "/var/lib/docker",
        }
        answers = {"_ping": "OK", "info": json.dumps(about)}
        body = answers.get(path, json.dumps({"Version": "20.10.24", "ApiVersion": "1.41"})).encode()
        self.send_response(200)
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "local"


@pytest.fixture
def old_engine(tmp_path: Path) -> Iterator[str]:
    """The context of an engine that is too old."""
    path, name = tmp_path / "old.sock", "kvshare-rig-old"
    server = socketserver.ThreadingUnixStreamServer(str(path), OldEngine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    engines.make_context(name, f"unix://{path}")
    yield name
    engines.remove_context(name)
    server.shutdown()
    server.server_close()


def test_an_engine_too_old_is_refused(rig: TwoMachines, old_engine: str) -> None:
    outcome = rig.up(DECODE_CONTEXT=old_engine)
    assert outcome.code == 2
    assert "expected Docker Engine 25.0 or newer on old-box and found 20.10.24" in outcome.err
    assert nothing_runs()


def test_an_unreachable_engine_is_named(rig: TwoMachines) -> None:
    engines.stop(DECODE)
    try:
        outcome = rig.up()
        assert outcome.code == 3
        assert f"context {engines.context_of(DECODE)}: no Docker engine answers" in outcome.err
        assert not engines.docker(PREFILL, "ps", "--quiet")
    finally:
        engines.start(DECODE)


# One node after the other.


def test_each_node_is_started_on_its_own_machine(guarded: TwoMachines) -> None:
    rig = guarded
    prefill = rig.make("up", "NODE=prefill")
    assert prefill.code == 0, prefill.err
    assert f"prefill goes to {PREFILL.address}, context {engines.context_of(PREFILL)}" in prefill.err
    assert nothing_named(DECODE, "decode")
    decode = rig.make("up", "NODE=decode")
    assert decode.code == 0, decode.err
    assert f"decode goes to {DECODE.address}, context {engines.context_of(DECODE)}" in decode.err
    assert nothing_named(PREFILL, "decode")


def test_nothing_is_mounted_from_the_operators_machine(rig: TwoMachines) -> None:
    del rig
    for host in (PREFILL, DECODE):
        for container in engines.docker(host, "ps", "--quiet").split():
            mounts = json.loads(engines.docker(host, "inspect", "--format", "{{json .Mounts}}", container))
            # A secret that was not given is that machine's own /dev/null.
            assert {mount["Source"] for mount in mounts if mount["Type"] == "bind"} <= {"/dev/null"}


@pytest.mark.timeout(2400)
def test_reuse_is_proven_every_time(rig: TwoMachines, long: bool) -> None:
    outcomes = [rig.verify() for _ in range(IN_A_ROW_LONG if long else IN_A_ROW)]
    assert [outcome.code for outcome in outcomes] == [0] * len(outcomes), last_words(outcomes)


def last_words(outcomes: list[Outcome]) -> str:
    return next((o.said for o in outcomes if o.code != 0), "")


def test_reuse_is_proven_over_a_gigabit_with_five_milliseconds(rig: TwoMachines) -> None:
    network.shape(DECODE, GIGABIT)
    try:
        outcome = rig.verify("--prompt-tokens", "1546")
    finally:
        network.unshape(DECODE)
    assert outcome.code == 0, outcome.said
    assert "worth it" in outcome.report["summary"]


def test_a_pull_that_does_not_pay_is_proven_and_called_that(rig: TwoMachines) -> None:
    network.shape(DECODE, SLOW)
    try:
        outcome = rig.verify("--prompt-tokens", "266")
    finally:
        network.unshape(DECODE)
    assert outcome.code == 0, outcome.said
    assert "not worth it" in outcome.report["summary"]


@pytest.mark.usefixtures("rig")
def test_what_vllm_holds_itself_is_not_pulled() -> None:
    """Decode's vLLM holds a prompt that it has pulled; its LMCache does not, and prefill's does."""
    traffic = Traffic(seed=77, api_key=KEY)
    declined, moved = traffic.declined(DECODE), traffic.sources(DECODE)
    known = traffic.know(1)
    time.sleep(ADMITTED_S)
    traffic.ask_all(DECODE, known)
    assert (traffic.sources(DECODE) - moved).external_kv_transfer == CHUNKS_OF_TOKENS
    assert traffic.declined(DECODE) == declined
    traffic.ask_all(DECODE, known)
    assert traffic.declined(DECODE) == declined + 1
    assert traffic.faulty() == []


# The same over ssh, from the operator's own host.


@pytest.mark.parametrize("terminal", [False, True])
def test_an_unknown_host_key_is_refused_with_the_command_that_adds_it(
    rig: TwoMachines, ssh: SshServer, terminal: bool
) -> None:
    refuses_the_key(over_ssh(rig, ssh, "up", "decode", terminal=terminal))


def test_a_known_host_is_reached_over_ssh(rig: TwoMachines, ssh: SshServer) -> None:
    ssh.trust()
    shown = over_ssh(rig, ssh, "status", "--output", "json")
    assert shown.code == 0, shown.said
    started = over_ssh(rig, ssh, "up", "decode")
    assert started.code == 0, started.err
    proven = over_ssh(rig, ssh, *rig.verification())
    assert proven.code == 0, proven.said
    assert ssh.logins <= 6, "a command has one connection, or two that began at once"


def test_a_host_whose_cable_is_cut_is_named(rig: TwoMachines, ssh: SshServer) -> None:
    ssh.trust()
    network.partition(DECODE)
    try:
        shown = over_ssh(rig, ssh, "status", "--output", "json")
    finally:
        network.heal(DECODE)
    assert shown.code == 3, shown.said
    assert f"context {ssh.context}: no Docker engine answers" in shown.err
    assert [row["state"] for row in json.loads(shown.out)] == ["running", "running", "unknown", "running"]
