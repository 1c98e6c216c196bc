"""The API key: read from its file, handed on without a trace, and named when it is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvshare import cli
from kvshare.config import keys
from kvshare.config.keys import Keys
from kvshare.config.settings import Settings
from kvshare.contract import bearer_of
from kvshare.errors import KvshareError
from kvshare.servers.server import FLUSH_S
from kvshare.site.containers import Containers
from kvshare.verify import client as sender
from kvshare.verify import legs
from kvshare.verify.evidence import Spec
from tests.unit.build import SPEC, STACK, proven
from tests.unit.fake_stack import FakeStack, serve
from tests.unit.test_verify import Process

CLUSTER = "5b" * 32
TOKEN = bearer_of(CLUSTER)


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


@pytest.mark.parametrize("api", ["sk-secret", ""])
@pytest.mark.parametrize("cluster", [CLUSTER, ""])
def test_the_client_container_reads_the_keys_from_a_pipe(
    tmp_path: Path, api: str, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Process(code=1)
    monkeypatch.setattr(Containers, "look", lambda _: {})
    monkeypatch.setattr(subprocess, "Popen", client)
    decisions = Settings(tmp_path, {"VLLM_API_KEY": api, "CLUSTER_KEY": cluster})
    with pytest.raises(sender.ClientFailedError):
        sender.send(Containers(STACK, decisions), SPEC)
    command, _ = client.calls[0]
    assert client.said.split() == [key for key in (api, cluster) if key]
    assert ("--api-key-file" in command, "--cluster-key-file" in command) == (bool(api), bool(cluster))
    assert not {"sk-secret", CLUSTER, TOKEN} & set(" ".join(command).split())


def test_legs_take_the_keys_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Keys] = []
    traffic = proven().traffic
    assert traffic is not None

    def run(_: Spec, keys: Keys, __: legs.Narrate) -> object:
        seen.append(keys)
        return traffic

    monkeypatch.setattr(legs, "run", run)
    urls = ["--prefill", "http://p", "--decode", "http://d", "--controller", "http://c"]
    both = [*["--cluster-key-file", "-", "--api-key-file", "-"]]
    for given, arguments in ((f"sk-secret\n{CLUSTER}\n", both), (f"{CLUSTER}\n", both[:2]), ("", [])):
        result = CliRunner().invoke(cli.main, ["legs", *urls, *arguments], input=given)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["seconds"] == traffic.seconds
    assert seen == [Keys("sk-secret", TOKEN), Keys(None, TOKEN), Keys()]


def test_a_cluster_key_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret")
    with pytest.raises(KvshareError, match="must hold one key, 64 hexadecimal digits"):
        keys.read(None, tmp_path / "key")
    (tmp_path / "key").write_text("")
    assert keys.read(tmp_path / "key", tmp_path / "key") == Keys()
    with pytest.raises(KvshareError, match=r"the cluster key file .*/absent cannot be read: No such file"):
        keys.read(None, tmp_path / "absent")


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("wrong", "refuses the API key: API_KEY_FILE in .env must hold the one that the server was started"),
        (None, "wants an API key: set API_KEY_FILE in .env to the file that holds it"),
    ],
)
def test_a_wrong_or_missing_key_is_named_at_once(key: str | None, sentence: str) -> None:
    with serve(FakeStack(api_key="sk-secret")) as spec:
        traffic = legs.run(spec, Keys(key), lambda _: None)
    assert traffic.seconds < FLUSH_S, "nothing was sent, so no counter is waited for"
    for probe in (traffic.prefill, traffic.decode):
        assert not probe.healthy
        assert sentence in (probe.error or "")
