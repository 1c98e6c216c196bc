"""What stands before a start: an image may be missing, if it is not needed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.operate import demo, down, up
from kvshare.site import compose, dockerd, images
from tests.conftest import ROOT
from tests.unit.build import STACK
from tests.unit.fake_docker import FakeDocker

SETTINGS = Settings(ROOT, {"CLUSTER_KEY_FILE": "off"})


@dataclass
class Engine:
    """Stands for the engines: what is missing, and what was asked of them and of Compose."""

    docker: FakeDocker
    missing: list[str] = field(default_factory=list)
    images_of: dict[str, list[str]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)

    def put(self, context: str, service: str, state: str, health: str) -> None:
        self.docker.add_container(context, service, state={"Status": state, "Health": {"Status": health}})


@pytest.fixture
def engine(fake_docker: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine(fake_docker)

    def missing(_: Settings, context: str, services: Sequence[str]) -> list[str]:
        engine.images_of[context] = list(services)
        return engine.missing

    monkeypatch.setattr(images, "missing", missing)
    monkeypatch.setattr(compose, "run", lambda *started: engine.started.extend(started[5:]))
    monkeypatch.setattr(up, "wait_until_healthy", lambda *_: None)
    return engine


def test_the_first_start_makes_a_key_for_every_later_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del engine
    settings, given = Settings(tmp_path, {}), []
    monkeypatch.setattr(compose, "run", lambda settings, *_: given.append(settings.cluster_key))
    for _ in range(2):
        up.start(settings, STACK, "all", 1)
    (key,) = set(given)
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert (tmp_path / ".kvshare/cluster.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("given", [{"CLUSTER_KEY_FILE": "off"}, {"CLUSTER_KEY": "5b" * 32}])
def test_a_start_makes_no_key_where_one_was_given_or_none_is_wanted(
    engine: Engine, tmp_path: Path, given: dict[str, str]
) -> None:
    del engine
    up.start(Settings(tmp_path, given), STACK, "all", 1)
    assert not (tmp_path / ".kvshare").exists()


def test_one_that_ends_by_itself_is_named_with_its_last_lines(
    fake_docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "missing", lambda *_: [])
    monkeypatch.setattr(compose, "run", lambda *_: "")
    fake_docker.add_container("gpu-b", "decode", "no memory\n", state={"Status": "restarting"})
    with pytest.raises(KvshareError, match=r"decode on context gpu-b ended by itself; .*\nno memory\n"):
        up.start(SETTINGS, STACK, "decode", 60)
    (asked,) = [call for call in fake_docker.calls("gpu-b") if "/logs " in call]
    assert f"tail={up.LOG_LINES}" in asked


def test_one_that_is_not_healthy_in_time_is_named(
    fake_docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "missing", lambda *_: [])
    monkeypatch.setattr(compose, "run", lambda *_: "")
    health = {"Status": "starting", "Log": [{"Output": "late"}, {"Output": "has another cluster key\n"}]}
    fake_docker.add_container("gpu-b", "decode", state={"Health": health})
    said = "was not healthy within 0 s, as its health check says: has another cluster key;"
    with pytest.raises(KvshareError, match=f"decode on context gpu-b {said}"):
        up.start(SETTINGS, STACK, "decode", 0)


def test_decodes_engine_needs_no_client(engine: Engine) -> None:
    up.start(SETTINGS, STACK, "all", 1)
    assert engine.images_of == {"default": ["controller", "prefill", "client"], "gpu-b": ["decode"]}


@pytest.mark.parametrize(
    ("registry", "other"), [("", "make ship"), ("registry.example/kvshare", "make pull")]
)
def test_a_missing_image_says_how_to_get_it(engine: Engine, registry: str, other: str) -> None:
    engine.missing = ["kvshare/engine-cpu:0.1.0"]
    settings = Settings(ROOT, {"REGISTRY": registry})
    with pytest.raises(
        KvshareError, match=f"has no image .*: type make image NODE=decode, or {other} NODE=decode"
    ):
        up.start(settings, STACK, "decode", 1)
    assert engine.started == []


def test_nothing_is_started_where_any_engine_lacks_an_image(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = {"gpu-b": ["kvshare/engine-cpu:0.1.0"]}
    monkeypatch.setattr(images, "missing", lambda _, context, __: lacking.get(context, []))
    with pytest.raises(KvshareError, match="context gpu-b has no image"):
        up.start(SETTINGS, STACK, "all", 1)
    assert engine.started == []


def test_an_engine_that_is_silent_does_not_keep_the_others_from_stopping(
    fake_docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []

    fake_docker.engine("default", "down")
    monkeypatch.setattr(compose, "run", lambda _, context, *__: stopped.append(context))
    with pytest.raises(CouldNotCheckError, match="context default: no Docker engine answers"):
        down.stop(SETTINGS, ["default", "gpu-b"])
    assert stopped == ["gpu-b"]


@pytest.mark.parametrize(
    ("contexts", "local_is_up", "asked", "engine_stopped"),
    [
        (("default", "gpu-b"), True, ["default", "gpu-b"], True),
        (("default", "gpu-b"), False, ["gpu-b"], True),
        (("gpu-a", "gpu-b"), False, ["gpu-a", "gpu-b"], False),
    ],
)
def test_down_stops_the_local_engine_only_if_the_stack_uses_it(
    contexts: tuple[str, str],
    local_is_up: bool,
    asked: list[str],
    engine_stopped: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    def stopped(_: Path) -> bool:
        said.append("engine")
        return True

    monkeypatch.setattr(dockerd, "is_up", lambda: local_is_up)
    monkeypatch.setattr(dockerd, "stop", stopped)
    monkeypatch.setattr(down, "stop", lambda _, names: said.extend(names))
    prefill, decode = (
        dataclasses.replace(member, context=context)
        for member, context in zip((STACK.prefill, STACK.decode), contexts, strict=True)
    )
    controller = dataclasses.replace(STACK.controller, context=contexts[0])
    stack = dataclasses.replace(STACK, controller=controller, prefill=prefill, decodes=(decode,))
    demo.stop(ROOT, SETTINGS, stack)
    assert said == [*asked, *(["engine"] if engine_stopped else [])]
