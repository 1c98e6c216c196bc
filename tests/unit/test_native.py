"""Plain processes instead of containers: the same environment, this machine only, a clean stop."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import yaml

from kvshare.config.settings import Settings, load_settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.site import native, processes
from kvshare.site.base import answered, held
from kvshare.site.native import EndedError, Native
from kvshare.site.processes import Process
from kvshare.stack.members import Controller, Server
from tests.conftest import ROOT
from tests.unit.build import STACK

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
    expected = {
        name: native.HOST if name.endswith("_HOST") else value
        for name, value in golden["services"][service]["environment"].items()
    }
    assert native.service_environment(settings(device, **TWO_MACHINES), service) == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_address_is_the_loopback_whatever_the_decisions_say(device: str, tmp_path: Path) -> None:
    stack = Native(settings(device, **TWO_MACHINES), tmp_path)
    for process in stack.processes.values():
        hosts = {v for name, v in process.environment.items() if name.endswith(("_HOST", "_HOST_IP"))}
        assert hosts == {"127.0.0.1"}
    assert {member.host for member in stack.stack.members} == {"127.0.0.1"}


def test_each_decode_node_of_several_is_a_server_with_an_address_and_gpus_of_its_own(tmp_path: Path) -> None:
    several = {"DECODE_HOSTS": "10.0.0.2,10.0.0.3", "DECODE_CONTEXTS": "x,y", "DECODE_GPUS": "1,2"}
    stack = Native(settings("cuda", **several), tmp_path)
    assert [(decode.name, decode.host) for decode in stack.stack.decodes] == [
        ("decode-1", "127.0.0.1"),
        ("decode-2", "127.0.0.2"),
    ]
    assert list(stack.processes) == ["controller", "prefill", "decode-1", "decode-2"]
    first, second = (stack.processes[name].environment for name in ("decode-1", "decode-2"))
    changed = {name: (value, second[name]) for name, value in first.items() if value != second[name]}
    assert changed == {
        "KVSHARE_HOST": ("127.0.0.1", "127.0.0.2"),
        "KVSHARE_INSTANCE": ("lmcache_instance_2", "lmcache_instance_3"),
        "KVSHARE_GPUS": ("1", "2"),
        "CUDA_VISIBLE_DEVICES": ("1", "2"),
    }


@pytest.mark.parametrize(("gpus", "starts"), [("0", [1, 1, 1]), ("1", [1, 2])])
def test_servers_of_one_gpu_start_one_after_the_other(
    gpus: str, starts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []
    at_once: list[int] = []

    def await_healthy(_: Native, __: Process) -> None:
        if launched:
            at_once.append(len(launched))
            launched.clear()

    monkeypatch.setattr(native, "_require_free", lambda _: None)
    monkeypatch.setattr(Native, "_launch", lambda _, process: launched.append(process.service))
    monkeypatch.setattr(Native, "_await", await_healthy)
    Native(settings("cuda", DECODE_GPU=gpus), tmp_path, tmp_path / "patches.json").start()
    assert at_once == starts


def test_decisions_are_taken_over_and_an_empty_one_is_none() -> None:
    decided = settings("cpu", MODEL="/models/mine", LANES="3", MAX_MODEL_LEN="")
    environment = native.service_environment(decided, "decode")
    assert environment["KVSHARE_MODEL"] == "/models/mine"
    assert environment["KVSHARE_LANES"] == "3"
    assert environment["KVSHARE_MAX_MODEL_LEN"] == "1600"


def test_two_servers_of_one_gpu_share_its_memory_and_those_of_two_do_not() -> None:
    several = {"PREFILL_GPU": "0,1", "DECODE_GPU": "1,2"}
    for gpus, shared in (({}, True), ({"DECODE_GPU": "1"}, False), (several, True)):
        environment = native.process_environment(settings("cuda", **gpus), "decode", {})
        assert environment["CUDA_VISIBLE_DEVICES"] == gpus.get("DECODE_GPU", "0")
        assert environment["KVSHARE_VLLM_ARGS"].endswith(native.SHARED_GPU) == shared


def test_the_controller_reserves_no_gpu() -> None:
    environment = native.process_environment(settings("cuda"), "controller", {})
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_the_caller_decides_the_servers_arguments_and_the_hub_folder_only() -> None:
    caller = {
        "KVSHARE_VLLM_ARGS": "--enforce-eager",
        "HF_HOME": "/hub",
        "PYTHONHASHSEED": "0",
        "EDITOR": "vi",
    }
    environment = native.process_environment(settings("cpu"), "prefill", caller)
    assert (environment["KVSHARE_VLLM_ARGS"], environment["HF_HOME"]) == ("--enforce-eager", "/hub")
    assert (environment["PYTHONHASHSEED"], environment["EDITOR"]) == ("123", "vi")


def test_the_containers_hub_folder_is_not_taken_for_this_machines() -> None:
    environment = native.process_environment(settings("cpu"), "prefill", {})
    assert "HF_HOME" not in environment


def test_what_the_images_set_is_set() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    for name, value in {**native.IMAGE, **native.IMAGE_CPU}.items():
        assert f"{name}={value}" in dockerfile


def running(tmp_path: Path, code: str) -> Process:
    process = Process("prefill", tmp_path, dict(os.environ))
    process.start([sys.executable, "-c", code])
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
    monkeypatch.setattr(processes, "STOP_S", 0.5)
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
        monkeypatch.setattr(Controller, "ports", ())
        monkeypatch.setattr(Server, "ports", property(lambda s: [port] if s.name == "decode" else []))
        with pytest.raises(KvshareError, match=f"port {port} of 127.0.0.1 is taken"):
            stack.start()
    assert all(process.running is None for process in stack.processes.values())


def test_every_port_of_the_three_is_looked_at(tmp_path: Path) -> None:
    ports = [port for member in Native(settings("cpu"), tmp_path).stack.members for port in member.ports]
    assert len(set(ports)) == len(ports) == 14


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
    processes._signal_group(started, signal.SIGTERM)


# --- as a site ----------------------------------------------------------------------------------------------


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Native]:
    """Three processes that print a line, and go on printing what is written into their folder."""
    monkeypatch.setattr(Process, "is_healthy", lambda _: True)
    stack = Native(settings("cpu"), tmp_path)
    for process in stack.processes.values():
        process.environment = {**os.environ, "ROLE": process.service}
        process.start(["sh", "-c", 'echo "started $ROLE"; exec sleep 60'])
        while "started" not in process.log.read_text():
            time.sleep(0.01)
    with stack:
        yield stack


def test_processes_have_states_and_a_log_that_counts_from_now_on(serving: Native) -> None:
    site = serving.site()
    decode = serving.stack.decode
    assert {state.status for state in site.look().values()} == {"running"}
    with serving.processes["decode"].log.open("a") as log:
        log.write("\x1b[32mpulled\x1b[0m\n")
    assert site.log(decode) == "pulled\n"
    assert site.log(decode, whole=True) == "started decode\npulled\n"
    serving.processes["decode"].running.kill()  # type: ignore[union-attr]
    serving.processes["decode"].running.wait()  # type: ignore[union-attr]
    assert site.look()["decode"].status == "exited"


def test_commands_run_in_a_process_environment(serving: Native) -> None:
    site, decode = serving.site(), serving.stack.decode
    echoed = answered(site.beside(decode, "sh", "-c", "cat; echo $ROLE $A", environment={"A": "b"}), "x ")
    assert echoed == "x decode b\n"
    python = answered(site.beside(decode, "python", "-c", "import sys; print(sys.executable)"))
    assert python.strip() == sys.executable
    with pytest.raises(CouldNotCheckError, match=r"sh: no such thing\.$"):
        answered(site.beside(decode, "sh", "-c", "echo 'no such thing' >&2; exit 3"))
    with pytest.raises(CouldNotCheckError, match="sleep did not end in 0 s"):
        answered(site.beside(decode, "sleep", "60"), timeout_s=0.1)


def test_a_held_command_ends_with_its_input(serving: Native, tmp_path: Path) -> None:
    command = ("sh", "-c", f"echo ready; cat > /dev/null; touch {tmp_path}/ended")
    with held(serving.site().beside(serving.stack.decode, *command)) as said:
        assert said == "ready\n"
    assert (tmp_path / "ended").exists()


def test_a_fingerprint_lies_in_the_processes_folder(serving: Native) -> None:
    with pytest.raises(CouldNotCheckError, match=r"decode's fingerprint\.json cannot be read: No such file"):
        serving.site().fingerprint(serving.stack.decode)
    (serving.processes["decode"].folder / "fingerprint.json").write_text("{}")
    assert serving.site().fingerprint(serving.stack.decode) == "{}"


def test_the_client_is_the_tools_own_command(serving: Native) -> None:
    with serving.site().client("legs", STACK.decode) as client:
        _, error = client.communicate(timeout=60)
    assert client.returncode == 2, "that is no task"
    assert error is None
