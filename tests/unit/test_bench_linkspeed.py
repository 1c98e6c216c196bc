"""The link's measurement, with a stand-in for the engine's probe inside the servers' containers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvshare.bench import linkspeed
from kvshare.bench.results import Link
from kvshare.contract import Fingerprint
from kvshare.errors import CouldNotCheckError
from kvshare.stack.members import Member
from tests.unit.build import STACK

PRINTS = {
    "prefill": Fingerprint("prefill", ucx={"UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth0"}),
    "decode": Fingerprint("decode", ucx={"UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth1"}),
}


class Site:
    """Answers as the probe does, and keeps what was run where, with which variables."""

    stack = STACK
    ports = '{"bandwidth": [4001, 4003], "latency": 4002}'
    said = json.dumps({"bytes_per_s": 2.1e9, "latency_s": 5e-5, "error": ""})

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []

    @contextmanager
    def beside(self, member: Member, *command: str, environment: Any) -> Iterator[Site]:
        self.asked.append((member.name, " ".join(command), environment))
        yield self

    def first_line(self) -> str:
        return self.ports

    def answer(self, *_: object) -> str:
        return self.said

    def end(self) -> None:
        pass


def measure(site: Site) -> Link:
    return linkspeed.measure(site, PRINTS)  # type: ignore[arg-type]


def test_the_owner_measures_towards_the_one_that_asks() -> None:
    site = Site()
    assert measure(site) == Link(2.1, "ucx_perftest, UCX_NET_DEVICES=eth0 UCX_TLS=tcp")
    probe = "python -m kvshare_engine probe"
    assert site.asked == [
        ("decode", f"{probe} link-serve", {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth1"}),
        ("prefill", f"{probe} link-measure 192.168.110.97 4001,4003 4002", PRINTS["prefill"].ucx),
    ]


def test_what_the_probe_complains_of_is_the_reason() -> None:
    site = Site()
    site.said = '{"bytes_per_s": null, "latency_s": null, "error": "no device eth0"}'
    assert measure(site) == Link(None, "", "no device eth0")


def test_an_image_without_the_probe_is_said() -> None:
    site = Site()
    site.ports = ""
    assert measure(site).reason == linkspeed.NO_PROBE


def test_a_server_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise CouldNotCheckError("decode has no container on context gpu-b.")

    monkeypatch.setattr(Site, "beside", missing)
    assert measure(Site()).reason == "decode has no container on context gpu-b"
