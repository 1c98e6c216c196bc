"""`kvshare key rotate`: one node at a time, and none before the gateway uses the last one again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from kvshare.operate import rotate as rotation
from kvshare.site import compose
from kvshare.site.base import State
from tests.unit.build import STACK as WITHOUT_GATEWAY
from tests.unit.build import WATCHED
from tests.unit.build import WITH_GATEWAY as STACK

OLD = "5b" * 32
PLACE = "192.168.110.97:8011"


class World:
    """What the gateway says of decode, look by look; all that was done, and whether with another key."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, *looks: dict[str, bool]) -> None:
        (root / "key").write_text(OLD)
        (root / "key").chmod(0o600)
        self.settings = Settings(root, {"CLUSTER_KEY_FILE": "key", "DEVICE": "cpu"})
        self.absent: tuple[str, ...] = ()
        self.looks, self.done, self.health = list(looks), list[tuple[str, bool]](), "healthy"
        monkeypatch.setattr(rotation, "POLL_S", 0.001)
        monkeypatch.setattr(rotation, "fetch", lambda *_: self._look())
        monkeypatch.setattr(rotation, "Containers", self._site)
        monkeypatch.setattr(rotation, "wait_until_healthy", lambda site, _: self._did("wait", *site.members))
        monkeypatch.setattr(rotation, "stop_members", lambda _, __, members: self._did("stop", *members))
        monkeypatch.setattr(compose, "run", lambda _, __, *words: self._run(words))

    def _site(self, stack: Any, _settings: Any, members: Any) -> Any:
        there = [member.name for member in members if member.name not in self.absent]
        found = {name: State(name, "running", self.health) for name in there}
        return SimpleNamespace(stack=stack, members=members, found=found, beside=print)

    def _run(self, words: tuple[str, ...]) -> None:
        assert words[:4] == ("up", "--detach", "--no-build", "--no-deps")
        self._note(f"start {' '.join(words[4:])}")

    def _did(self, what: str, *members: Any) -> None:
        self._note(f"{what} {' '.join(member.name for member in members)}")

    def _look(self) -> str:
        self._note("look")
        return json.dumps({"nodes": [{"place": PLACE, "up": True, "drained": False} | self.looks.pop(0)]})

    def _note(self, what: str) -> None:
        self.done.append((what, self.settings.cluster_key != OLD))


def test_decode_is_used_again_before_prefill_is_stopped_and_all_with_another_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path, {"drained": True}, {"up": False}, {})
    rotation.rotate(world.settings, STACK, 60)
    assert world.done == [
        (what, True)
        for what in (
            "stop decode", "start decode", "look", "look", "look",
            "stop prefill controller", "start controller prefill", "wait decode prefill controller gateway",
        )
    ]  # fmt: skip
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_watches_and_runs_gets_the_key_with_the_controller(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path, {})
    world.absent = ("canary",)
    rotation.rotate(world.settings, WATCHED, 60)
    assert [what for what, _ in world.done][-3:] == [
        "stop prefill controller prometheus",
        "start prometheus controller prefill",
        "wait decode prefill controller gateway prometheus",
    ]


def test_a_node_that_does_not_come_back_ends_it_with_prefill_untouched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, tmp_path)
    with pytest.raises(KvshareError, match=f"{PLACE} did not come back within 0 s"):
        rotation.rotate(world.settings, STACK, 0)
    assert [what for what, _ in world.done] == ["stop decode", "start decode"]


@pytest.mark.parametrize("stack", [STACK, WITHOUT_GATEWAY], ids=["unhealthy", "no gateway"])
def test_nothing_is_touched_where_a_request_could_be_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stack: Any
) -> None:
    world = World(monkeypatch, tmp_path)
    world.health = "unhealthy" if stack is STACK else "healthy"
    with pytest.raises(KvshareError, match="expected every node healthy and a gateway before them"):
        rotation.rotate(world.settings, stack, 60)
    assert (world.done, world.settings.cluster_key) == ([], OLD)


def test_without_a_key_there_is_none_to_rotate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(monkeypatch, tmp_path)
    with pytest.raises(KvshareError, match="no cluster key in a file to rotate"):
        rotation.rotate(Settings(tmp_path, {"CLUSTER_KEY_FILE": "off"}), STACK, 60)
    assert world.done == []
