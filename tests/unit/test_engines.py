"""What is made of the Docker SDK's answers; the SDK's client is replaced, its connection is tested apart."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
import requests
from docker.errors import APIError, DockerException
from docker.transport import sshconn

from kvshare.site import engines
from kvshare.site.engines import Engines
from kvshare.verify.evidence import Hit
from tests.unit.build import STACK
from tests.unit.test_stack import Answer

FINGERPRINT = {
    "role": "decode",
    "instance": "lmcache_instance_2",
    "python_hash_seed": "123",
    "model": "/models/x",
    "vocab_size": 259,
    "dtype": "float32",
    "max_model_len": 1600,
    "kv_transfer_config": None,
    "lmcache": {"chunk_size": 256},
    "ucx": {},
    "versions": {"vllm": "0.32.0"},
    "patches": [
        {"id": "packed-kv", "file": "a.py"},
        {"id": "packed-kv", "file": "b.py"},
        {"id": "message-defaults"},
    ],
}


@dataclass
class FakeContainer:
    """A container as docker-py shows it."""

    name: str
    status: str = "running"
    health: str | None = "healthy"
    log: str = ""
    fingerprint: str | None = json.dumps(FINGERPRINT)
    commands: list[list[str]] = field(default_factory=list)
    since: list[object] = field(default_factory=list)

    @property
    def attrs(self) -> dict[str, Any]:
        health = {"Health": {"Status": self.health}} if self.health else {}
        return {"State": {"Status": self.status, "ExitCode": 0, **health}, "Image": "sha256:abc"}

    def exec_run(self, command: list[str]) -> tuple[int, bytes]:
        self.commands.append(command)
        if self.fingerprint is None:
            return 1, b"cat: no such file"
        return 0, self.fingerprint.encode()

    def logs(self, since: object = None, tail: object = "all") -> bytes:
        self.since.append(since)
        lines = self.log.splitlines(keepends=True)
        return "".join(lines[-tail:] if isinstance(tail, int) else lines).encode()


class FakeClient:
    """An engine with some of the stack's containers."""

    def __init__(self, **containers: FakeContainer) -> None:
        self.all = containers
        self.containers = self
        self.closed = False

    def info(self) -> dict[str, str]:
        return {"SystemTime": "2026-11-24T06:00:00.123456789Z"}

    def list(self, all: bool, filters: dict[str, list[str]]) -> list[FakeContainer]:
        assert all, "stopped containers matter too"
        assert "com.docker.compose.project=kvshare" in filters["label"]
        assert "com.docker.compose.oneoff=False" in filters["label"]
        wanted = next(label.split("=")[1] for label in filters["label"] if "compose.service" in label)
        return [self.all[wanted]] if wanted in self.all else []

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clients() -> dict[str, FakeClient | Exception]:
    return {
        "default": FakeClient(
            controller=FakeContainer("kvshare-controller-1"), prefill=FakeContainer("kvshare-prefill-1")
        ),
        "gpu-b": FakeClient(decode=FakeContainer("kvshare-decode-1")),
    }


def connector(clients: dict[str, FakeClient | Exception]) -> Callable[[str], FakeClient]:
    def connect(context: str) -> FakeClient:
        found = clients[context]
        if isinstance(found, Exception):
            raise found
        return found

    return connect


@pytest.fixture
def connected(
    clients: dict[str, FakeClient | Exception], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engines]:
    monkeypatch.setattr(engines, "connect", connector(clients))
    with Engines(STACK) as connected:
        yield connected


def decode(clients: dict[str, FakeClient | Exception]) -> FakeContainer:
    client = clients["gpu-b"]
    assert isinstance(client, FakeClient)
    return client.all["decode"]


def test_every_container_is_asked_on_its_own_context(connected: Engines) -> None:
    assert [c.service for c in connected.containers()] == ["controller", "prefill", "decode"]
    assert {c.state for c in connected.containers()} == {"running"}
    assert [probe.error for probe in connected.probes()] == [None, None]


def test_fingerprint_is_read_by_cat_and_what_is_new_in_it_left_out(
    connected: Engines, clients: dict[str, FakeClient | Exception]
) -> None:
    found = connected.containers()[2].fingerprint
    assert found is not None
    assert found.lmcache == {"chunk_size": 256}
    assert found.patch_ids == ("message-defaults", "packed-kv")
    assert decode(clients).commands == [["cat", "/tmp/kvshare/fingerprint.json"]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "fingerprint.json is not in kvshare-decode-1"),
        ("not json", "makes no sense"),
        ('{"instance": "x"}', "missing required field `role`"),
        (
            '{"role": "decode", "max_model_len": "long"}',
            "`int | null`, got `str` - at `$.max_model_len`",
        ),
    ],
)
def test_fingerprint_that_cannot_be_read_says_why(
    connected: Engines, clients: dict[str, FakeClient | Exception], text: str | None, reason: str
) -> None:
    decode(clients).fingerprint = text
    found = connected.containers()[2]
    assert found.fingerprint is None
    assert found.error is not None
    assert reason in found.error


def test_stopped_container_is_not_executed_in(
    connected: Engines, clients: dict[str, FakeClient | Exception]
) -> None:
    decode(clients).status = "exited"
    found = connected.containers()[2]
    assert (found.state, found.fingerprint, decode(clients).commands) == ("exited", None, [])


def test_missing_container(connected: Engines, clients: dict[str, FakeClient | Exception]) -> None:
    client = clients["gpu-b"]
    assert isinstance(client, FakeClient)
    del client.all["decode"]
    assert connected.containers()[2].state == "missing"
    assert connected.logs().decode_hits is None
    assert connected.tail("decode") == ""


@pytest.mark.parametrize(
    "error",
    [DockerException("no such context"), requests.ConnectionError("refused"), PermissionError(13, "denied")],
    ids=lambda error: type(error).__name__,
)
def test_engine_that_does_not_answer_is_evidence(
    error: Exception, clients: dict[str, FakeClient | Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    clients["gpu-b"] = error

    monkeypatch.setattr(engines, "connect", connector(clients))
    with Engines(STACK) as connected:
        probes = connected.probes()
        containers = connected.containers()
        logs = connected.logs()
    assert probes[0].error is None
    assert probes[1].error
    assert [c.state for c in containers] == ["running", "running", "missing"]
    assert logs.decode_hits is None
    assert logs.controller_errors == ()


def test_engine_that_fails_half_way_is_evidence(
    connected: Engines, clients: dict[str, FakeClient | Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise APIError("the engine went away")

    monkeypatch.setattr(decode(clients), "logs", broken)
    monkeypatch.setattr(decode(clients), "exec_run", broken)
    assert connected.logs().decode_hits is None
    assert connected.containers()[2].error == "the engine went away"


def test_hits_are_read_from_decodes_log(
    connected: Engines, clients: dict[str, FakeClient | Exception]
) -> None:
    decode(clients).log = (
        "(EngineCore pid=9) [2026-11-24 06:00:01,123] LMCache INFO: Reqid: cmpl-kvshare-7-1-peer-0-ab12cd34, "
        "Total tokens 1546, Inference Engine computed tokens: 0, LMCache hit tokens: 1536, need to load: 9 "
        "(vllm_v1_adapter.py:1475:lmcache)\n"
        "Reqid: cmpl-x, Total tokens 9, Inference Engine computed tokens: 0, LMCache hit tokens: None.\n"
        "\x1b[32;20mReqid: cmpl-y, Total tokens 1546, Inference Engine computed tokens: 0, \x1b[0m"
        "LMCache hit tokens: 0, need to load: 0\n"
    )
    assert connected.logs().decode_hits == (Hit("cmpl-kvshare-7-1-peer-0-ab12cd34", 1536), Hit("cmpl-y", 0))


def test_lookups_are_read_from_the_owners_log(
    connected: Engines, clients: dict[str, FakeClient | Exception]
) -> None:
    client = clients["default"]
    assert isinstance(client, FakeClient)
    client.all[
        "prefill"
    ].log = "INFO: Received P2P batched lookup and get msg, lookup_id: cmpl-a-0-12 (p2p.py:1)\n"
    assert connected.logs().owner_lookups == ("cmpl-a-0-12",)


def test_lookups_that_timed_out_are_read_from_both_servers(
    connected: Engines, clients: dict[str, FakeClient | Exception]
) -> None:
    line = "WARNING: Request {} is still waiting for async lookup after 3 seconds, returning 0\n"
    decode(clients).log = line.format("cmpl-kvshare-7-1-peer-0-ab")
    client = clients["default"]
    assert isinstance(client, FakeClient)
    client.all["prefill"].log = line.format("cmpl-kvshare-7-3-reference-0-cd")
    assert connected.logs().lookup_timeouts == (
        "cmpl-kvshare-7-3-reference-0-cd",
        "cmpl-kvshare-7-1-peer-0-ab",
    )


def test_server_logs_are_read_since_the_engines_own_clock(
    connected: Engines, clients: dict[str, FakeClient | Exception]
) -> None:
    connected.logs()
    assert decode(clients).since == [1795500000]
    client = clients["default"]
    assert isinstance(client, FakeClient)
    assert client.all["controller"].since == [None]


@pytest.mark.parametrize(
    ("line", "is_error"),
    [
        ("ERROR: Error handling request message: Object missing required field `peer_init_url`", True),
        ("msgspec.ValidationError: Object missing required field `peer_init_url` - at `$`", True),
        ("INFO: Registered instance-worker ('lmcache_instance_1', 0) with URL 127.0.0.1:8500", False),
        ("INFO: peer init url of ('lmcache_instance_1', 0) is None, only register when p2p is used.", False),
        ("INFO: Got peer_init_url 127.0.0.1:8200", False),
        ("ERROR: something else", False),
    ],
)
def test_only_errors_about_peer_init_url_count(
    line: str, is_error: bool, connected: Engines, clients: dict[str, FakeClient | Exception]
) -> None:
    client = clients["default"]
    assert isinstance(client, FakeClient)
    client.all["controller"].log = line + "\n"
    assert bool(connected.logs().controller_errors) is is_error


def test_tail_is_the_end_of_the_log(connected: Engines, clients: dict[str, FakeClient | Exception]) -> None:
    decode(clients).log = "one\ntwo\nthree\n"
    assert connected.tail("decode", 2) == "two\nthree\n"


def test_waits_while_something_is_starting_and_not_longer(
    connected: Engines, clients: dict[str, FakeClient | Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            decode(clients).health = "healthy"

    monkeypatch.setattr(time, "sleep", sleep)
    connected.wait_until_started(60)
    assert slept == []
    decode(clients).health = "starting"
    connected.wait_until_started(60)
    assert len(slept) == 2
    decode(clients).health = "starting"
    connected.wait_until_started(0)
    assert len(slept) == 2


def test_connections_are_closed(connected: Engines, clients: dict[str, FakeClient | Exception]) -> None:
    connected.__exit__()
    assert all(isinstance(client, FakeClient) and client.closed for client in clients.values())


# --- connecting ---------------------------------------------------------------------------------------------


def described(host: str, tls: Path) -> str:
    endpoint = {"Host": host, "SkipTLSVerify": False}
    return json.dumps({"Name": "gpu-b", "Endpoints": {"docker": endpoint}, "Storage": {"TLSPath": str(tls)}})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the SDK's client is made with."""
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(docker, "DockerClient", lambda **given: arguments.update(given))
    return arguments


@pytest.mark.parametrize("host", ["unix:///var/run/docker.sock", "ssh://root@192.168.110.97"])
def test_a_context_leads_to_its_own_engine(
    host: str, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Answer(out=described(host, tmp_path))
    monkeypatch.setattr(subprocess, "run", answer)
    engines.connect("gpu-b")
    assert answer.calls[0][0][:4] == ["docker", "context", "inspect", "gpu-b"]
    assert asked["base_url"] == host
    assert asked["tls"] is False
    assert asked["use_ssh_client"] is True


def test_a_contexts_certificates_are_used(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docker").mkdir()
    for name in ("ca", "cert", "key"):
        (tmp_path / "docker" / f"{name}.pem").write_text("")
    monkeypatch.setattr(subprocess, "run", Answer(out=described("tcp://192.168.110.97:2376", tmp_path)))
    engines.connect("gpu-b")
    assert asked["tls"].ca_cert == str(tmp_path / "docker/ca.pem")
    assert asked["tls"].cert == (str(tmp_path / "docker/cert.pem"), str(tmp_path / "docker/key.pem"))
    assert asked["tls"].verify is True


def test_unknown_context_is_never_taken_for_the_local_engine(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Answer(code=1, err='context "gpu-x": context not found: open meta.json: no such file')
    monkeypatch.setattr(subprocess, "run", answer)
    with Engines(STACK) as connected:
        assert all(probe.error and "Docker has no context" in probe.error for probe in connected.probes())
        assert {container.state for container in connected.containers()} == {"missing"}
    assert asked == {}


def test_docker_command_that_does_not_answer_is_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Answer(error=subprocess.TimeoutExpired("docker", 20)))
    with Engines(STACK) as connected:
        assert all(probe.error for probe in connected.probes())


def test_over_ssh_an_answer_is_not_lost_because_ssh_has_ended() -> None:
    connection = sshconn.SSHSocket("nowhere.invalid")
    with subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as ended:
        ended.wait()
        connection.proc = ended
        connection.close()
        assert ended.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            ended.stdin.close()
