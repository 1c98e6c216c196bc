"""What stands before a start: what runs already is not checked, and what is not needed may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from kvshare import lifecycle
from kvshare.errors import KvshareError
from kvshare.lifecycle import ContainerState
from kvshare.settings import Settings
from kvshare.stack import Controller, Server, Stack
from tests.conftest import ROOT
from tests.unit.build import STACK

SETTINGS = Settings(ROOT, {})


@dataclass
class Engine:
    """Stands for Compose: containers by context, and what was asked of it."""

    states: dict[str, list[ContainerState]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    images_of: dict[str, list[str]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)

    def put(self, context: str, service: str, state: str, health: str) -> None:
        found = ContainerState(service, f"kvshare-{service}-1", state, health)
        self.states.setdefault(context, []).append(found)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()

    def check(_: Settings, __: Stack, members: Sequence[Controller | Server]) -> None:
        engine.checked += [member.name for member in members]

    def missing(_: Settings, context: str, services: Sequence[str]) -> list[str]:
        engine.images_of[context] = list(services)
        return engine.missing

    monkeypatch.setattr(lifecycle.preflight, "check_all", check)
    monkeypatch.setattr(lifecycle, "states", lambda _, context: engine.states.get(context, []))
    monkeypatch.setattr(lifecycle, "missing_images", missing)
    monkeypatch.setattr(lifecycle, "_start", lambda *started: engine.started.extend(started[2]))
    monkeypatch.setattr(lifecycle, "_wait_until_healthy", lambda *_: None)
    return engine


@pytest.mark.parametrize("health", ["healthy", "unhealthy", "starting"])
def test_what_runs_already_is_no_obstacle_however_it_is(engine: Engine, health: str) -> None:
    engine.put("default", "controller", "running", health)
    engine.put("default", "prefill", "running", health)
    lifecycle.up(SETTINGS, STACK, "all", 1)
    assert engine.checked == ["decode"], "its own port is not taken by another"
    assert engine.started == ["controller", "prefill", "decode"]


@pytest.mark.parametrize("state", ["exited", "restarting", "created"])
def test_what_does_not_run_is_checked(engine: Engine, state: str) -> None:
    engine.put("default", "prefill", state, "")
    lifecycle.up(SETTINGS, STACK, "prefill", 1)
    assert engine.checked == ["controller", "prefill"]


def test_the_same_service_on_another_context_is_another(engine: Engine) -> None:
    engine.put("default", "decode", "running", "healthy")
    lifecycle.up(SETTINGS, STACK, "decode", 1)
    assert engine.checked == ["decode"]


def test_decodes_engine_needs_no_client(engine: Engine) -> None:
    lifecycle.up(SETTINGS, STACK, "all", 1)
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
        lifecycle.up(settings, STACK, "decode", 1)
    assert engine.started == []
