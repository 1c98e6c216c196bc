"""The CIS Docker Benchmark's items on images and containers: each is in docs/security.md, and holds."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kvshare.stack.ports import registry
from tests.config.test_rendered import DEVICES, services
from tests.conftest import ROOT
from tests.unit.build import STACK

ITEMS = {f"4.{n}" for n in range(1, 12)} | {f"5.{n}" for n in range(1, 32)}
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
# One instruction a line, comments left out.
INSTRUCTIONS = re.sub(r"\\\n", "", re.sub(r"(?m)^ *#.*\n", "", DOCKERFILE)).splitlines()
SECRET_NAME = re.compile(r"(?i)token|password|api_?key|secret")
# What would share something of the host's with a container, by the item that forbids it.
FORBIDDEN = {
    "privileged": "5.4",
    "pid": "5.15",
    "ipc": "5.16",
    "uts": "5.20",
    "cgroup": "5.24",
    "cgroup_parent": "5.24",
    "userns_mode": "5.30",
}


@pytest.fixture(params=DEVICES)
def rendered(request: pytest.FixtureRequest) -> dict[str, Any]:
    return services(request.param)


def instructions(name: str) -> list[str]:
    return [line for line in INSTRUCTIONS if line.startswith(f"{name} ")]


def test_every_item_is_listed_once() -> None:
    page = (ROOT / "docs/security.md").read_text()
    table = page[page.index("## CIS Docker Benchmark") :]
    listed = [item for row in re.findall(r"(?m)^\| ([45]\.[\d., ]+)", table) for item in re.split(", ?", row)]
    assert sorted(item.strip() for item in listed) == sorted(ITEMS)


@pytest.mark.parametrize(("key", "item"), FORBIDDEN.items())
def test_nothing_of_the_hosts_is_shared(rendered: dict[str, Any], key: str, item: str) -> None:
    assert not [name for name, service in rendered.items() if service.get(key)], item


def test_no_profile_of_the_kernels_is_turned_off(rendered: dict[str, Any]) -> None:
    for service in rendered.values():
        assert service["security_opt"] == ["no-new-privileges:true"], "5.1, 5.2, 5.21, 5.25"


def test_no_mount_is_shared_with_the_host(rendered: dict[str, Any]) -> None:
    mounts = [mount for service in rendered.values() for mount in service.get("volumes", [])]
    assert not [mount for mount in mounts if "propagation" in mount.get("bind", {})], "5.19"


def test_the_client_writes_nowhere(rendered: dict[str, Any]) -> None:
    assert rendered["client"]["read_only"] is True, "5.12"
    assert rendered["client"]["restart"] == "no"


def test_no_port_is_a_privileged_one() -> None:
    assert min(port.first for port in registry(STACK)) > 8000, "5.7"


def test_an_image_runs_as_its_user_and_the_engine_says_how_it_is() -> None:
    for stage in ("engine", "client"):
        text = re.split(r"(?m)^FROM ", DOCKERFILE.split(f" AS {stage}\n")[1])[0]
        assert re.findall(r"(?m)^USER (.*)$", text) == ["2000:0"], "4.1"
        assert ("\nHEALTHCHECK " in text) == (stage == "engine"), "4.6"


def test_the_base_is_a_digest_and_nothing_is_added_from_elsewhere() -> None:
    assert re.search(r"(?m)^ARG BASE=debian:\S+@sha256:[0-9a-f]{64}$", DOCKERFILE), "4.2"
    assert not instructions("ADD"), "4.9"


def test_packages_are_verified_and_lists_of_them_fresh() -> None:
    for line in instructions("RUN"):
        assert ("apt-get update" in line) == ("apt-get install" in line), "4.7"
        for command in re.findall(r"pip(?: --python \S+)? (?:install|wheel) [^&]*", line):
            assert "--require-hashes" in command or "--no-index" in command, "4.11"


def test_no_secret_has_a_place_in_an_image() -> None:
    named = [line for kind in ("ARG", "ENV") for line in instructions(kind) if SECRET_NAME.search(line)]
    assert named == [], "4.10"


def test_what_the_tool_execs_has_no_more_rights_than_the_container() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tools/kvshare").rglob("*.py"))
    assert "exec_create(" in sources
    assert not re.search(r'"--(user|privileged)|\b(user|privileged)=', sources), "5.22, 5.23"
