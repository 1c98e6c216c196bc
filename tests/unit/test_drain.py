"""`kvshare down decode-2`: nothing new for a node, what runs there ends, then it alone is stopped."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from kvshare.cli import main
from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError
from kvshare.operate import down
from kvshare.site import compose
from tests.unit.build import WITH_GATEWAY as STACK

PLACE = "192.168.110.97:8011"


class Gateway:
    """What the gateway says of the drained node, look by look; all that was done, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *looks: dict[str, Any] | None) -> None:
        self.looks, self.done = list(looks), list[str]()
        monkeypatch.setattr(down, "answered", lambda _: "")
        monkeypatch.setattr(down, "fetch", lambda _, url: self._look(url))
        monkeypatch.setattr(down, "POLL_S", 0.001)
        monkeypatch.setattr(
            down, "Containers", lambda stack, _: SimpleNamespace(stack=stack, beside=self._beside)
        )
        monkeypatch.setattr(
            compose, "run", lambda _, context, *words: self.done.append(f"{context}: {' '.join(words)}")
        )

    def _beside(self, member: Any, *command: str) -> None:
        self.done.append(f"{member.name}: {' '.join(command)}")

    def _look(self, url: str) -> str:
        self.done.append(url)
        look = self.looks.pop(0)
        if look is None:
            raise CouldNotCheckError("the gateway does not answer.")
        return json.dumps({"nodes": [{"place": PLACE, "drained": True, "running": 0} | look]})


STOPPED = "gpu-b: rm --stop --force decode"
SETTINGS = Settings(Path("/nowhere"), {})


def stop(*names: str) -> None:
    down.stop_members(SETTINGS, STACK, [m for m in STACK.members if m.name in names])


def test_a_node_is_stopped_once_the_gateway_has_seen_the_mark_and_all_that_ran_has_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway(monkeypatch, {"drained": False}, {"running": 2}, {})
    stop("decode")
    looks = ["http://192.168.110.13:8000/health"] * 3
    assert gateway.done == [f"gateway: touch /tmp/drained/{PLACE}", *looks, STOPPED]
    assert "all the same" not in capsys.readouterr().err


def test_a_gateway_that_does_not_answer_keeps_no_node_from_stopping_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway(monkeypatch, None)
    stop("decode")
    assert gateway.done[-1] == STOPPED
    said = capsys.readouterr().err
    assert "decode is stopped all the same: whether anything runs there is not known, the gateway" in said


def test_what_never_ends_is_waited_for_no_longer_than_the_limit_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway(monkeypatch, *[{"running": 3}] * 10_000)
    monkeypatch.setattr(down, "DRAIN_S", 0.02)
    stop("decode")
    assert gateway.done[-1] == STOPPED
    assert "decode is stopped all the same: 3 requests still ran after 0 s" in capsys.readouterr().err


def test_the_prefill_node_takes_its_gateway_along_undrained(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(monkeypatch)
    stop("controller", "prefill", "gateway")
    assert gateway.done == ["default: rm --stop --force controller prefill gateway"]


def test_an_unknown_node_is_refused() -> None:
    result = CliRunner().invoke(main, ["down", "decode-9"])
    assert result.exit_code == 2
    assert "no node" in result.output
