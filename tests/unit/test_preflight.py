"""What would stop a start is found before anything starts, and said in a sentence."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from kvshare.operate import preflight
from kvshare.stack.members import Controller
from tests.conftest import ROOT
from tests.unit.build import STACK


def settings(**values: str) -> Settings:
    return Settings(ROOT, values)


def test_a_taken_port_is_named_with_its_purpose_and_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        controller = Controller("controller", "controller", "default", "127.0.0.1", 1, taken, 2, 3)
        with pytest.raises(
            KvshareError, match=rf"port {taken} \(controller pull\) is taken by python.* \(pid \d+\)"
        ):
            preflight.check_ports([controller])


def test_free_ports_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    preflight.check_ports(
        [Controller("controller", "controller", "default", "127.0.0.1", free, free, free, free)]
    )


def test_too_little_memory_says_what_is_needed_and_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        preflight.psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * preflight.GIB)
    )
    with pytest.raises(KvshareError, match=r"need 6.5 GiB, have 4.0 GiB available"):
        preflight.check_memory(settings(), STACK, STACK.members)


def test_what_runs_already_needs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: SimpleNamespace(available=preflight.GIB))
    preflight.check_memory(settings(), STACK, [STACK.controller])


def test_too_little_disk_says_where(tmp_path: Path) -> None:
    with pytest.raises(KvshareError, match=rf"not enough disk in {tmp_path}: need 10000000 GiB, have"):
        preflight.check_disk(tmp_path, 10_000_000)
    preflight.check_disk(tmp_path, 0)


def test_a_model_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    here = settings(MODEL="/models/mine", MODELS=str(tmp_path))
    with pytest.raises(KvshareError, match=f"should be at {tmp_path}/mine, which has no config.json"):
        preflight.check_model(here)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text("{}")
    preflight.check_model(here)


def test_a_model_path_outside_the_volume_is_refused() -> None:
    with pytest.raises(KvshareError, match="MODEL=/srv/mine is outside /models"):
        preflight.check_model(settings(MODEL="/srv/mine"))


@pytest.mark.parametrize("model", ["", "demo", "meta-llama/Meta-Llama-3.1-8B-Instruct"])
def test_a_name_is_left_to_the_server(model: str) -> None:
    preflight.check_model(settings(MODEL=model))


@pytest.mark.parametrize("value", ["256", "many"])
def test_a_length_that_holds_no_chunk_is_refused(value: str) -> None:
    with pytest.raises(
        KvshareError, match=f"MAX_MODEL_LEN={value} must be a number above the chunk size, 256"
    ):
        preflight.check_max_model_len(settings(MAX_MODEL_LEN=value))
    preflight.check_max_model_len(settings(MAX_MODEL_LEN="1600"))
