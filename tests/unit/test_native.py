"""Plain processes instead of containers: the same environment, this machine only, a clean stop."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import yaml

from kvshare.config.settings import Settings, load_settings
from kvshare.errors import KvshareError
from kvshare.site import native
from kvshare.site.native import EndedError, Native, Process
from tests.conftest import ROOT

GOLDEN = ROOT / "tests/config/golden"
TWO_MACHINES = {"PREFILL_HOST": "192.168.110.13", "DECODE_HOST": "192.168.110.97"}


def settings(device: str, **decisions: str) -> Settings:
    with TemporaryDirectory() as folder:
        shutil.copy(ROOT / ".env.example", folder)  # this machine's .env has no part in it
        return replace(load_settings(Path(folder), {"DEVICE": device, **decisions}), root=ROOT)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("service", native.SERVICES)
def test_the_environment_is_what_compose_would_hand_to_the_container(device: str, service: str) -> None:
    golden: dict[str, Any] = yaml.safe_load((GOLDEN / f"{device}-{service}.yaml").read_text())
    config = native.compose_config(settings(device, **TWO_MACHINES))
    assert native.service_environment(config, service) == golden["services"][service]["environment"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_address_is_the_loopback_whatever_the_decisions_say(device: str) -> None:
    config = native.compose_config(native.local(settings(device, **TWO_MACHINES)))
    for service in native.SERVICES:
        environment = native.process_environment(config, service, device, {})
        hosts = {value for name, value in environment.items() if name.endswith(("_HOST", "_HOST_IP"))}
        assert hosts == {"127.0.0.1"}


def test_two_servers_of_one_gpu_share_its_memory_and_those_of_two_do_not() -> None:
    for gpus, shared in (({}, True), ({"DECODE_GPU": "1"}, False)):
        config = native.compose_config(settings("cuda", **gpus))
        environment = native.process_environment(config, "decode", "cuda", {})
        assert environment["CUDA_VISIBLE_DEVICES"] == gpus.get("DECODE_GPU", "0")
        assert environment["KVSHARE_VLLM_ARGS"].endswith(native.SHARED_GPU) == shared


def test_the_controller_reserves_no_gpu() -> None:
    environment = native.process_environment(
        native.compose_config(settings("cuda")), "controller", "cuda", {}
    )
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_the_caller_decides_the_servers_arguments_and_the_hub_folder_only() -> None:
    caller = {
        "KVSHARE_VLLM_ARGS": "--enforce-eager",
        "HF_HOME": "/hub",
        "PYTHONHASHSEED": "0",
        "EDITOR": "vi",
    }
    environment = native.process_environment(native.compose_config(settings("cpu")), "prefill", "cpu", caller)
    assert (environment["KVSHARE_VLLM_ARGS"], environment["HF_HOME"]) == ("--enforce-eager", "/hub")
    assert (environment["PYTHONHASHSEED"], environment["EDITOR"]) == ("123", "vi")


def test_the_containers_hub_folder_is_not_taken_for_this_machines() -> None:
    environment = native.process_environment(native.compose_config(settings("cpu")), "prefill", "cpu", {})
    assert "HF_HOME" not in environment


def test_what_the_images_set_is_set() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    for name, value in {**native.IMAGE, **native.IMAGE_CPU}.items():
        assert f"{name}={value}" in dockerfile


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A:-b}", "b"),
        ("${A-b}", ""),
        ("${B:-b}", "x"),
        ("${C-b}", "b"),
        ("a$$b ${B}", "a$b x"),
        ("{B}", "{B}"),
    ],
)
def test_variables_are_filled_in_as_compose_does(text: str, expected: str) -> None:
    assert native._interpolated(text, {"A": "", "B": "x"}) == expected


def running(tmp_path: Path, code: str) -> Process:
    process = Process("prefill", tmp_path, dict(os.environ))
    with process.log.open("wb") as log:
        process.running = native._spawn([sys.executable, "-c", code], process, log)
    return process


def test_a_stop_ends_the_children_too(tmp_path: Path) -> None:
    child = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    )
    process = running(tmp_path, child)
    end = time.monotonic() + 20
    while not process.log.read_text().strip() and time.monotonic() < end:
        time.sleep(0.05)
    grandchild = int(process.log.read_text())
    process.stop()
    end = time.monotonic() + 20
    while psutil.pid_exists(grandchild) and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie"


def test_a_process_that_does_not_heed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "STOP_S", 0.5)
    process = running(
        tmp_path, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    )
    started = process.running
    assert started is not None
    time.sleep(0.5)
    process.stop()
    assert started.returncode is not None


def test_one_that_ends_by_itself_is_named_with_its_last_words(tmp_path: Path) -> None:
    stack = Native(settings("cpu"), tmp_path)
    (tmp_path / "decode").mkdir()
    stack.processes["decode"] = running(tmp_path / "decode", "print('no memory'); raise SystemExit(3)")
    stack.processes["decode"].service = "decode"
    with pytest.raises(EndedError, match=r"(?s)decode ended with exit code 3:.*no memory"):
        stack.watch()


def test_a_port_that_something_else_holds_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Native(settings("cpu"), tmp_path)
    with socket.socket() as taken:
        taken.bind((native.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(native, "_ports", lambda _config, service: [port] if service == "decode" else [])
        with pytest.raises(KvshareError, match=f"port {port} of 127.0.0.1 is taken"):
            stack.start()
    assert all(process.running is None for process in stack.processes.values())


def test_every_port_of_the_three_is_looked_at() -> None:
    config = native.compose_config(settings("cpu"))
    ports = [port for service in native.SERVICES for port in native._ports(config, service)]
    assert len(set(ports)) == len(ports) == 12


def test_an_environment_without_the_engine_is_refused_in_a_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(empty)], check=True, timeout=60)
    site = os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))
    code = (
        f"import sys; sys.path += {site.split(os.pathsep)!r}\n"
        "from kvshare.site import native\n"
        "native._require_free = lambda ports: None\n"  # whatever else runs on this machine
        "raise SystemExit(native.main())"
    )
    result = subprocess.run(
        [empty / "bin/python", "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "tools"), "DEVICE": "cpu", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert "no package lmcache" in result.stderr


def test_signals_reach_a_group_that_is_gone_without_a_word(tmp_path: Path) -> None:
    process = running(tmp_path, "pass")
    started = process.running
    assert started is not None
    started.wait(20)
    native._signal_group(started, signal.SIGTERM)
