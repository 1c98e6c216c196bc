"""The link's measurement through a docker command that runs a stand-in for the engine's probe."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from kvshare.bench import linkspeed
from kvshare.errors import CouldNotCheckError
from tests.unit.build import STACK

PRINTS = {
    "prefill": {"ucx": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth0"}},
    "decode": {"ucx": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth1"}},
}


class Containers:
    stack = STACK

    def container_id(self, member: object) -> str:
        return "prefill-id" if member is STACK.prefill else "decode-id"


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that keeps its command lines and answers as the probe does; its answer may be replaced."""
    answer = tmp_path / "answer"
    answer.write_text(json.dumps({"bytes_per_s": 2.1e9, "latency_s": 5e-5, "error": ""}))
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        f'case "$*" in *link-serve*) cat {tmp_path}/ports; cat > /dev/null;; *) cat {answer};; esac\n'
    )
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "ports").write_text('{"bandwidth": [4001, 4003], "latency": 4002}\n')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def measure() -> linkspeed.Link:
    return linkspeed.measure(Containers(), PRINTS)  # type: ignore[arg-type]


def test_the_owner_measures_towards_the_one_that_asks(probe: Path) -> None:
    assert measure() == linkspeed.Link(2.1, "ucx_perftest, UCX_NET_DEVICES=eth0 UCX_TLS=tcp")
    serve, near = (probe / "calls").read_text().splitlines()
    assert serve.startswith("--context gpu-b exec --interactive --env=UCX_TLS=tcp --env=UCX_NET_DEVICES=eth1")
    assert near.endswith(
        "prefill-id python -m kvshare_engine probe link-measure 192.168.110.97 4001,4003 4002"
    )


def test_what_the_probe_complains_of_is_the_reason(probe: Path) -> None:
    (probe / "answer").write_text('{"bytes_per_s": null, "latency_s": null, "error": "no device eth0"}')
    assert measure() == linkspeed.Link(None, "", "no device eth0")


def test_an_image_without_the_probe_is_said(probe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkspeed, "START_S", 0.5)
    (probe / "ports").write_text("")
    assert measure().reason == linkspeed.NO_PROBE


def test_a_server_that_is_not_there_is_said(probe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del probe

    def missing(*_: object) -> str:
        raise CouldNotCheckError("decode has no container on context gpu-b.")

    monkeypatch.setattr(Containers, "container_id", missing)
    assert measure().reason == "decode has no container on context gpu-b"
