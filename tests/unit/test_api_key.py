"""The API key: read from its file, handed on without a trace, and named when it is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvshare import cli
from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from kvshare.servers.server import FLUSH_S
from kvshare.site.containers import Containers
from kvshare.verify import client as sender
from kvshare.verify import legs
from kvshare.verify.evidence import Spec
from tests.unit.build import SPEC, STACK, proven
from tests.unit.fake_stack import FakeStack, serve
from tests.unit.test_verify import Process


def settings(root: Path, text: str | None) -> Settings:
    if text is not None:
        (root / "key").write_text(text)
    return Settings(root, {"API_KEY_FILE": "key", "DEVICE": "cpu"})  # pragma: allowlist secret


def test_the_key_comes_from_its_file(tmp_path: Path) -> None:
    decisions = settings(tmp_path, "sk-secret\n")
    assert decisions.api_key == "sk-secret"
    assert decisions.compose_environment()["VLLM_API_KEY"] == "sk-secret"
    assert Settings(tmp_path, {"VLLM_API_KEY": "sk-other"}).api_key == "sk-other"
    assert Settings(tmp_path, {}).compose_environment()["VLLM_API_KEY"] == ""


@pytest.mark.parametrize("text", ["", "\n", "two words", "sk-1\nsk-2\n", "schlüssel"])
def test_a_file_without_a_usable_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(KvshareError, match="API_KEY_FILE=key must hold one key"):
        _ = settings(tmp_path, text).api_key


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KvshareError, match="API_KEY_FILE=key cannot be read: No such file"):
        _ = settings(tmp_path, None).api_key
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    with pytest.raises(KvshareError, match="API_KEY_FILE=key cannot be read: it is no text"):
        _ = settings(tmp_path, None).api_key


@pytest.mark.parametrize("key", ["sk-secret", ""])
def test_the_client_container_reads_the_key_from_a_pipe(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Process(code=1)
    monkeypatch.setattr(Containers, "look", lambda _: {})
    monkeypatch.setattr(subprocess, "Popen", client)
    with pytest.raises(sender.ClientFailedError):
        sender.send(Containers(STACK, Settings(tmp_path, {"VLLM_API_KEY": key})), SPEC)
    command, _ = client.calls[0]
    assert client.said == key
    assert ("--api-key-file" in command) == bool(key)
    assert "sk-secret" not in " ".join(command)


def test_legs_take_the_key_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    traffic = proven().traffic
    assert traffic is not None

    def run(_: Spec, key: str | None, __: legs.Narrate) -> object:
        seen.append(key)
        return traffic

    monkeypatch.setattr(legs, "run", run)
    urls = ["--prefill", "http://p", "--decode", "http://d", "--controller", "http://c"]
    for given, arguments in (("sk-secret\n", ["--api-key-file", "-"]), ("", [])):
        result = CliRunner().invoke(cli.main, ["legs", *urls, *arguments], input=given)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["seconds"] == traffic.seconds
    assert seen == ["sk-secret", None]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("wrong", "refuses the API key: API_KEY_FILE in .env must hold the one that the server was started"),
        (None, "wants an API key: set API_KEY_FILE in .env to the file that holds it"),
    ],
)
def test_a_wrong_or_missing_key_is_named_at_once(key: str | None, sentence: str) -> None:
    with serve(FakeStack(api_key="sk-secret")) as spec:
        traffic = legs.run(spec, key, lambda _: None)
    assert traffic.seconds < FLUSH_S, "nothing was sent, so no counter is waited for"
    for probe in (traffic.prefill, traffic.decode):
        assert not probe.healthy
        assert sentence in (probe.error or "")
