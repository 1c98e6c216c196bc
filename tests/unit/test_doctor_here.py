"""What would stop a start is found before anything starts, without a container, and said in a sentence."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from kvshare.config.settings import Settings
from kvshare.contract import Endpoint, folder_of
from kvshare.doctor import engines, here
from kvshare.errors import KvshareError
from kvshare.site import disk, images
from kvshare.site.disk import GIB
from kvshare.stack.members import LOOPBACK, Controller, Member
from tests.conftest import ROOT
from tests.unit.build import STACK
from tests.unit.doctor_build import IMAGE, environment

HERE = "127.0.0.1"
LOCAL = replace(
    STACK,
    controller=replace(STACK.controller, host=HERE),
    prefill=replace(STACK.prefill, host=HERE),
    decodes=(replace(STACK.decode, context="default", host=HERE),),
)


class Here:
    """This machine: what its engine has and runs, what Compose tells the servers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stack, self.settings = LOCAL, Settings(ROOT, {})
        self.running: dict[str, tuple[str, ...]] = {}
        self.image: Any = IMAGE
        self.disk_gib, self.memory_gib = 100.0, 64.0
        self.environment: dict[str, str] = {"LMCACHE_MAX_LOCAL_CPU_SIZE": "0.5"}
        monkeypatch.setattr(here, "services_of", self._services)
        monkeypatch.setattr(engines, "running", lambda context, _: self.running.get(context, ()))
        monkeypatch.setattr(images, "find", lambda *_: self.image)
        self.local: tuple[str, ...] = ("default",)
        monkeypatch.setattr(disk, "room", self._room)
        # Whatever else runs on the machine of these tests is not seen.
        every = psutil.net_connections
        ours = lambda kind: [one for one in every(kind) if one.pid == os.getpid()]  # noqa: E731
        monkeypatch.setattr(psutil, "net_connections", ours)
        memory = lambda: SimpleNamespace(available=int(self.memory_gib * GIB))  # noqa: E731
        monkeypatch.setattr(psutil, "virtual_memory", memory)

    def _room(self, context: str) -> disk.Room | None:
        room = disk.Room(Path("/srv/docker"), int(self.disk_gib * GIB))
        return room if context in self.local else None

    def _services(self, _: Settings, members: Sequence[Member]) -> dict[str, Any]:
        return {
            member.name: SimpleNamespace(
                image=IMAGE.name, environment={**environment(member), **self.environment}
            )
            for member in members
        }

    def require(self, *members: Member) -> None:
        here.require(self.settings, self.stack, members or self.stack.members)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(monkeypatch)


def test_nothing_in_the_way_is_nothing_said(machine: Here) -> None:
    machine.require()


# --- ports --------------------------------------------------------------------------------------------------


def listen(machine: Here, host: str = HERE) -> tuple[socket.socket, Controller]:
    """Take a port of the controller."""
    server = socket.create_server((host, 0))
    controller = replace(LOCAL.controller, pull_port=server.getsockname()[1])
    machine.stack = replace(LOCAL, controller=controller)
    return server, controller


def test_a_taken_port_of_nixls_counters_is_named(machine: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told on loopback, whatever a server's own address is."""
    held = {"eth0": [SimpleNamespace(address="192.0.2.1")]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: held)
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        prefill = replace(LOCAL.prefill, host="192.0.2.1", nixl_port=port)
        machine.stack = replace(LOCAL, prefill=prefill)
        with pytest.raises(KvshareError, match=rf"prefill: port {port} \(prefill NIXL metrics\) is taken"):
            machine.require(machine.stack.prefill)


@pytest.mark.parametrize("host", [HERE, "0.0.0.0"])
def test_a_taken_port_is_named_with_its_purpose_and_its_process(machine: Here, host: str) -> None:
    server, controller = listen(machine, host)
    taken = rf"controller: port {controller.pull_port} \(controller pull\) is taken by python.* \(pid \d+\)"
    with server, pytest.raises(KvshareError, match=taken) as refusal:
        machine.require(controller, LOCAL.prefill)
    assert "stop what listens there" in refusal.value.message
    assert refusal.value.message.endswith("(DOC-HOST-06).")
    assert refusal.value.exit_code == 2


def test_a_port_that_is_free_again_is_free(machine: Here) -> None:
    server, controller = listen(machine)
    server.close()
    machine.require(controller, LOCAL.prefill)


def test_what_runs_already_has_its_own_ports(machine: Here) -> None:
    server, controller = listen(machine)
    machine.running = {"default": ("controller",)}
    with server:
        machine.require(controller, LOCAL.prefill)
        machine.running = {"another": ("controller",)}
        with pytest.raises(KvshareError, match="is taken by"):
            machine.require(controller, LOCAL.prefill)


def test_a_member_that_is_not_to_start_may_find_its_port_taken(machine: Here) -> None:
    server, _ = listen(machine)
    with server:
        machine.require(machine.stack.prefill)


def test_an_engine_with_a_network_of_its_own_has_its_own_ports(machine: Here) -> None:
    server, controller = listen(machine, "0.0.0.0")
    away = replace(controller, host="192.0.2.1")
    machine.stack = replace(machine.stack, controller=away)
    with server:
        machine.require(away, LOCAL.prefill)


def test_a_range_is_no_port_that_something_else_could_have_taken(
    machine: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = STACK.prefill.data_ports[0]
    monkeypatch.setattr(here, "_listening", lambda _: (Endpoint(HERE, first, "another (pid 1)"),))
    machine.require()


def test_another_machine_is_left_to_itself(machine: Here) -> None:
    machine.stack, machine.memory_gib = STACK, 1
    machine.require(STACK.decode)


# --- memory and disk ----------------------------------------------------------------------------------------


def test_too_little_memory_says_what_is_needed_and_what_there_is(machine: Here) -> None:
    machine.memory_gib = 4
    with pytest.raises(KvshareError, match=r"6\.5 GiB needed, 4\.0 GiB available.*lower .*CPU_CACHE_GIB"):
        machine.require()


def test_only_what_is_to_start_needs_memory(machine: Here) -> None:
    machine.memory_gib = 3.2
    machine.require(LOCAL.decode)
    machine.running = {"default": ("prefill", "decode")}
    machine.require()


def test_two_engines_of_this_machine_share_its_memory(machine: Here) -> None:
    machine.local = ("default", "gpu-b")
    machine.stack, machine.memory_gib = STACK, 4
    with pytest.raises(KvshareError, match=r"6\.5 GiB needed"):
        machine.require()


def test_of_a_gpu_server_lmcaches_memory_counts_as_the_repository_sets_it(machine: Here) -> None:
    machine.stack, machine.environment, machine.memory_gib = replace(LOCAL, device="cuda"), {}, 10
    with pytest.raises(KvshareError, match=r"10\.5 GiB needed, 10\.0 GiB available"):
        machine.require()


@pytest.mark.parametrize(("image", "need"), [(IMAGE, 2), (None, 12)])
def test_too_little_disk_says_where(machine: Here, image: Any, need: int) -> None:
    machine.image, machine.disk_gib = image, need - 0.5
    with pytest.raises(KvshareError, match=rf"{need} GiB needed in /srv/docker, {need - 0.5} GiB free"):
        machine.require()
    machine.disk_gib = need
    machine.require()


# --- the model ----------------------------------------------------------------------------------------------


def test_a_model_folder_that_is_not_there_is_named(machine: Here, tmp_path: Path) -> None:
    machine.settings = Settings(ROOT, {"MODEL": "/models/mine", "MODELS": str(tmp_path)})
    with pytest.raises(KvshareError, match=f"no config.json at {tmp_path}/mine"):
        machine.require()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text("{}")
    machine.require()


def test_another_machines_folder_is_left_to_the_server(machine: Here, tmp_path: Path) -> None:
    machine.settings = Settings(ROOT, {"MODEL": "/models/mine", "MODELS": str(tmp_path)})
    machine.stack = STACK
    machine.require(STACK.decode)


def test_a_model_path_outside_the_volume_is_refused(machine: Here) -> None:
    machine.environment["KVSHARE_MODEL"] = "/srv/mine"
    with pytest.raises(KvshareError, match=r"MODEL=/srv/mine is outside /models.*set MODELS to the folder"):
        machine.require()


NAMES = ("demo", "meta-llama/Meta-Llama-3.1-8B-Instruct")


@pytest.mark.parametrize("model", NAMES)
def test_a_name_is_left_to_the_server_that_can_put_it_there(
    machine: Here, model: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    machine.settings = Settings(ROOT, {"MODEL": model, "MODELS": str(tmp_path)})
    machine.require()


@pytest.mark.parametrize("model", ["", *NAMES])
def test_a_models_folder_that_the_server_may_not_write_is_named(
    machine: Here, model: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    machine.settings = Settings(ROOT, {"MODEL": model, "MODELS": str(tmp_path)})
    may_not = f"{model or 'demo'} is to go into the models volume, which user 2000 may not write.*chown 2000"
    with pytest.raises(KvshareError, match=may_not):
        machine.require()
    (tmp_path / folder_of(model or "demo")).mkdir(parents=True)
    machine.require()


def test_a_model_that_shares_no_kv_is_refused_before_anything_starts(machine: Here, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"is_encoder_decoder": True}))
    machine.settings = Settings(ROOT, {"MODEL": "/models/.", "MODELS": str(tmp_path)})
    with pytest.raises(KvshareError, match=r"it is an encoder-decoder, .*\(DOC-CONF-11\)"):
        machine.require()


@pytest.mark.parametrize("value", ["256", "many"])
def test_a_length_that_holds_no_chunk_is_refused(machine: Here, value: str) -> None:
    machine.environment["KVSHARE_MAX_MODEL_LEN"] = value
    with pytest.raises(
        KvshareError, match=f"MAX_MODEL_LEN={value}; expected a number above the chunk size, 256 tokens"
    ):
        machine.require()
    for enough in ("257", "1k", "auto"):
        machine.environment["KVSHARE_MAX_MODEL_LEN"] = enough
        machine.require()
