"""Where Docker contexts lead, and what is said when they lead nowhere good."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from kvshare.errors import COULD_NOT_CHECK, USAGE, KvshareError
from kvshare.site import contexts

SSH = "ssh://root@192.168.110.97:2222"


def docker(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, Any] | None, err: str = "", host: str = SSH
) -> None:
    """Stand for the docker command: a context that leads to ``host``, and what `docker info` says there."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if "inspect" in command:
            described = {"Endpoints": {"docker": {"Host": host}}, "Storage": {"TLSPath": "/tls"}}
            return subprocess.CompletedProcess(command, 0, json.dumps(described), "")
        return subprocess.CompletedProcess(command, 0 if info else 1, json.dumps(info) if info else "", err)

    monkeypatch.setattr(subprocess, "run", run)


def refusal(context: str = "gpu-b") -> KvshareError:
    with pytest.raises(KvshareError) as refused:
        contexts.read_engine(context)
    return refused.value


def test_an_engine_tells_its_host_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    docker(monkeypatch, {"Name": "box-97", "ServerVersion": "26.1.5+dfsg1"})
    assert contexts.read_engine("gpu-b") == contexts.Engine("gpu-b", "box-97", "26.1.5+dfsg1")


def test_an_engine_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    docker(monkeypatch, {"Name": "box-97", "ServerVersion": "20.10.24"})
    refused = refusal()
    assert refused.exit_code == USAGE
    assert "expected Docker Engine 25.0 or newer on box-97 and found 20.10.24" in refused.message


def test_an_unknown_host_key_is_refused_with_the_command_that_adds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    docker(monkeypatch, None, "error during connect: stderr=Host key verification failed.")
    refused = refusal()
    assert refused.exit_code == USAGE
    assert "ssh-keyscan -p 2222 192.168.110.97 >> ~/.ssh/known_hosts" in refused.message


def test_an_engine_that_keeps_silent_is_named_with_what_to_type_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if "inspect" not in command:
            raise subprocess.TimeoutExpired(command, contexts.ANSWER_TIMEOUT_S)
        described = {"Endpoints": {"docker": {"Host": SSH}}, "Storage": {"TLSPath": "/tls"}}
        return subprocess.CompletedProcess(command, 0, json.dumps(described), "")

    monkeypatch.setattr(subprocess, "run", run)
    refused = refusal()
    assert refused.exit_code == COULD_NOT_CHECK
    assert f"context gpu-b: no Docker engine answers at {SSH} (nothing within 20 s): type" in refused.message


def test_an_engine_that_does_not_answer_names_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    docker(monkeypatch, {"ServerErrors": ["Cannot connect to the Docker daemon"]})
    refused = refusal()
    assert refused.exit_code == COULD_NOT_CHECK
    assert f"context gpu-b: no Docker engine answers at {SSH} (Cannot connect" in refused.message


def test_an_unknown_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "")
    )
    refused = refusal("gpu-x")
    assert refused.exit_code == USAGE
    assert "Docker has no context gpu-x: type docker context ls" in refused.message


@pytest.mark.parametrize(
    ("text", "numbers"), [("26.1.5+dfsg1", (26, 1, 5)), ("v0.13.1", (0, 13, 1)), ("dev", ())]
)
def test_versions_are_read_up_to_what_is_no_number(text: str, numbers: tuple[int, ...]) -> None:
    assert contexts.version_of(text) == numbers


def test_ssh_never_asks_on_the_terminal_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_ASKPASS", raising=False)
    monkeypatch.delenv("SSH_ASKPASS_REQUIRE", raising=False)
    assert contexts.quiet_ssh_environment()["SSH_ASKPASS_REQUIRE"] == "force"
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "prefer")
    assert contexts.quiet_ssh_environment()["SSH_ASKPASS_REQUIRE"] == "prefer"
