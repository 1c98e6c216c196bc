"""One archive: everything that can be had, nothing that is secret, and a list of what is missing."""

from __future__ import annotations

import json
import stat
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kvshare import records
from kvshare.config.settings import Settings
from kvshare.contract import FINGERPRINT as FINGERPRINT_FILE
from kvshare.errors import KvshareError
from kvshare.operate import bundle
from kvshare.verify.evidence import Evidence
from tests.unit.build import STACK, proven
from tests.unit.fake_docker import FakeDocker
from tests.unit.test_cli import invoke
from tests.unit.test_site import FINGERPRINT
from tests.unit.test_status import WORKERS, WORKERS_URL

PLANTED = "pl4nted"  # is in every secret of this file
FILE_TOKEN = f"{PLANTED}-in-a-token-file"
CLUSTER_KEY = f"{PLANTED}-in-the-key-that-up-made"
ENV_KEY = f"{PLANTED}-in-a-containers-environment"
T = "2026-11-24T08:00:00.000000000Z"
LOG = "\n".join(
    f"{T} {line}"
    for line in (
        "LMCache hit tokens: 1536, need to load: 1536",
        f"non-default args: {{'api_key': ['{PLANTED}-api'], 'port': 8010}}",
        f"> Authorization: Bearer {PLANTED}-header",
        f"proxy is http://me:{PLANTED}-url@proxy.example:3128",  # pragma: allowlist secret
        f"hub answered 401 to {FILE_TOKEN}",
        f"turned away who has not {CLUSTER_KEY}",
        f"started with {ENV_KEY}",
    )
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A kvshare folder with a token file, a password in its settings, and what verify and a build left."""
    (tmp_path / "token").write_text(f"{FILE_TOKEN}\n")
    (tmp_path / ".kvshare").mkdir()
    (tmp_path / ".kvshare/cluster.key").write_text(CLUSTER_KEY)
    (tmp_path / ".kvshare/build.log").write_text(f"#1 curl -H 'Authorization: Bearer {PLANTED}-build'\n")
    (tmp_path / ".kvshare/verify.json").write_text(records.dumps(proven()))
    monkeypatch.setenv("DEPLOY_PASSWORD", f"{PLANTED}-operator")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    return Settings(tmp_path, {"HF_TOKEN_FILE": "token", "HF_TOKEN": f"{PLANTED}-setting", "MODEL": "demo"})


@pytest.fixture(autouse=True)
def resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "services": {"decode": {"environment": {"MODEL": "demo", "VLLM_API_KEY": f"{PLANTED}-config"}}},
        "secrets": {"hf_token": {"environment": "HF_TOKEN", "content": f"{PLANTED}-content"}},
    }
    monkeypatch.setattr(bundle, "resolved_config", lambda *_: config)
    monkeypatch.setattr(bundle, "read_stack", lambda _: STACK)


@pytest.fixture
def running(fake_docker: FakeDocker) -> FakeDocker:
    environment = ["KVSHARE_ROLE=decode", f"DECODE_API_KEY={ENV_KEY}", f"HF_TOKEN={PLANTED}-inspect"]
    fake_docker.add_image("default", "kvshare/engine-cpu:0.1.0", "ab")
    fake_docker.add_image("gpu-b", "kvshare/engine-cpu:0.1.0", "ab")
    fake_docker.add_container("default", "controller", LOG)
    fake_docker.add_container("default", "prefill", LOG)
    fake_docker.add_container("gpu-b", "decode", LOG, env=environment)
    metrics = f'vllm:config{{api_key="{PLANTED}-metric",model="demo"}} 1.0\nvllm:prompt_tokens_total 1546.0\n'
    shared = {FINGERPRINT_FILE: json.dumps(FINGERPRINT)}
    controller = {
        WORKERS_URL: WORKERS,
        "/metrics": metrics,
        "/controller/key-stats": '{"total_key_count": 24}',
    }
    fake_docker.answers("default", **shared, **controller, **{f"{STACK.prefill.url}/metrics": metrics})
    fake_docker.answers("gpu-b", **shared, **{f"{STACK.decode.url}/metrics": metrics})
    return fake_docker


def contents(path: Path) -> dict[str, str]:
    """Return an archive's files by name within its folder."""
    with tarfile.open(path) as archive:
        found = {}
        for entry in archive.getmembers():
            stream = archive.extractfile(entry)
            assert stream is not None
            found[entry.name.partition("/")[2]] = stream.read().decode()
        return found


def made(settings: Settings, path: Path, **options: Any) -> dict[str, str]:
    bundle.bundle(settings, path, bundle.Options(**options))
    return contents(path)


@pytest.mark.usefixtures("running")
def test_everything_is_in_it(settings: Settings, tmp_path: Path) -> None:
    found = made(settings, tmp_path / "b.tar.gz")
    assert sorted(found) == [
        "README.md",
        *("compose/default.json", "compose/gpu-b.json"),
        *("fingerprints/controller.json", "fingerprints/decode.json", "fingerprints/prefill.json"),
        *("images/controller.json", "images/decode.json"),
        *("inspect/controller.json", "inspect/decode.json", "inspect/prefill.json"),
        *("logs/controller.log", "logs/decode.log", "logs/prefill.log"),
        *("metrics/controller-key-stats.json", "metrics/controller-workers.json", "metrics/controller.prom"),
        *("metrics/decode.prom", "metrics/prefill.prom"),
        *("saved/build.log", "saved/verify.json", "settings.json", "status.json", "versions.json"),
    ]
    assert "## What could not be had\nNothing." in found["README.md"]
    assert json.loads(found["versions.json"])["compose"] == {"default": "2.26.1", "gpu-b": "2.26.1"}
    assert json.loads(found["metrics/controller-workers.json"]) == json.loads(WORKERS)


@pytest.mark.usefixtures("running")
def test_no_planted_secret_is_in_it_and_every_figure_is(settings: Settings, tmp_path: Path) -> None:
    found = made(settings, tmp_path / "b.tar.gz")
    assert {name: text for name, text in found.items() if PLANTED in text} == {}
    assert "LMCache hit tokens: 1536, need to load: 1536" in found["logs/decode.log"]
    assert "vllm:prompt_tokens_total 1546.0" in found["metrics/decode.prom"]
    assert records.loads(Evidence, found["saved/verify.json"]) == proven()
    decode = json.loads(found["inspect/decode.json"])["Config"]["Env"]
    assert decode == ["KVSHARE_ROLE=decode", "DECODE_API_KEY=[removed]", "HF_TOKEN=[removed]"]
    assert json.loads(found["settings.json"]) == {
        "HF_TOKEN_FILE": "token",
        "HF_TOKEN": "[removed]",
        "MODEL": "demo",
    }
    config = json.loads(found["compose/gpu-b.json"])
    assert config["services"]["decode"]["environment"] == {"MODEL": "demo", "VLLM_API_KEY": "[removed]"}


def test_an_engine_that_does_not_answer_is_named_and_the_rest_is_there(
    running: FakeDocker, settings: Settings, tmp_path: Path
) -> None:
    running.engine("gpu-b", "down")
    found = made(settings, tmp_path / "b.tar.gz")
    assert "- all of context gpu-b: context gpu-b: no Docker engine answers" in found["README.md"]
    assert {"logs/prefill.log", "compose/gpu-b.json"} < set(found)
    assert "logs/decode.log" not in found


def test_a_server_that_does_not_answer_is_named(
    running: FakeDocker, settings: Settings, tmp_path: Path
) -> None:
    running.answers("gpu-b")
    found = made(settings, tmp_path / "b.tar.gz")
    assert "- metrics/decode.prom: context gpu-b: urllib.error.URLError" in found["README.md"]
    assert "- fingerprints/decode.json: " in found["README.md"]
    assert "logs/decode.log" in found


def test_a_container_that_ended_still_has_its_log(
    running: FakeDocker, settings: Settings, tmp_path: Path
) -> None:
    running.add_container("gpu-b", "decode", LOG, state={"Status": "exited"})
    found = made(settings, tmp_path / "b.tar.gz")
    assert "- decode: fingerprint and metrics: its container is exited" in found["README.md"]
    assert "logs/decode.log" in found


@pytest.mark.usefixtures("fake_docker")
def test_nothing_runs(settings: Settings, tmp_path: Path) -> None:
    found = made(settings, tmp_path / "b.tar.gz")
    assert "- decode: everything: context gpu-b has no container of it" in found["README.md"]
    assert "versions.json" in found


@pytest.mark.usefixtures("running")
def test_compose_that_refuses_the_settings_is_no_obstacle(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Settings) -> None:
        raise KvshareError(f"docker compose config refuses the settings: password={PLANTED}-said")

    monkeypatch.setattr(bundle, "read_stack", refuse)
    found = made(settings, tmp_path / "b.tar.gz")
    assert "- everything about nodes: docker compose config refuses the settings" in found["README.md"]
    assert PLANTED not in found["README.md"]
    assert {"settings.json", "versions.json", "saved/build.log"} < set(found)


@pytest.mark.usefixtures("running")
def test_evidence_of_the_users_choice_goes_in(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / ".kvshare/verify.json").unlink()
    mine = tmp_path / "mine.json"
    mine.write_text(records.dumps(proven()))
    assert "evidence of verify: none is saved" in made(settings, tmp_path / "a.tar.gz")["README.md"]
    assert "saved/mine.json" in made(settings, tmp_path / "b.tar.gz", evidence=(mine,))


@pytest.mark.usefixtures("running")
def test_only_its_owner_may_read_it_and_nothing_else_is_left(settings: Settings, tmp_path: Path) -> None:
    target = tmp_path / "out" / "b.tar.gz"
    target.parent.mkdir()
    bundle.bundle(settings, target, bundle.Options())
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in target.parent.iterdir()] == ["b.tar.gz"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("b.zip", "is no name for a bundle: it must end in .tar.gz"),
        ("there.tar.gz", "is there already"),
        ("nowhere/b.tar.gz", "is no folder that you may write to"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_is_asked(
    name: str, sentence: str, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "there.tar.gz").touch()
    with pytest.raises(KvshareError, match=sentence):
        bundle.bundle(settings, tmp_path / name, bundle.Options())


@pytest.mark.usefixtures("running")
def test_the_command_prints_the_files_name_and_names_what_is_missing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvshare.commands.bundle.load_settings", lambda _: settings)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".kvshare/verify.json").unlink()
    result = invoke("bundle")
    assert result.exit_code == 0
    assert Path(result.stdout.strip()).is_file()
    assert "kvshare: not in it: evidence of verify: none is saved" in result.stderr


def test_the_default_name_holds_the_time() -> None:
    now = datetime(2026, 11, 24, 8, 1, 2, tzinfo=UTC)
    assert bundle.default_path(now) == Path("kvshare-bundle-20261124T080102Z.tar.gz")
