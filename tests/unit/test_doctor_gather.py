"""How the doctor looks: engines and one-off containers are stand-ins, all between is real."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kvshare.checking.registry import SUCCESS, WARNING
from kvshare.config.settings import Settings
from kvshare.contract import Answer, Held, Measurement, Ports
from kvshare.doctor import checks, containers, gather, links, network, probing
from kvshare.doctor import engines as engine_side
from kvshare.doctor.containers import OneOffs
from kvshare.doctor.evidence import OPERATOR, Engine, Evidence, Gpus
from kvshare.doctor.judgement import judge
from kvshare.doctor.services import service_of
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.site import contexts
from tests.unit.build import STACK
from tests.unit.doctor_build import IMAGE, environment, healthy, running

SETTINGS = Settings(Path("/nowhere"), {"DEVICE": "cpu", "DECODE_CONTEXT": "gpu-b", "HF_TOKEN": "hf_secret"})


def config(context: str) -> dict[str, Any]:
    """`docker compose config`, as far as the doctor reads it."""
    del context
    services = {
        member.service: {
            "image": IMAGE.name,
            "environment": {**environment(member), "UCX_TLS": "", "KVSHARE_HOST": member.host},
            "volumes": [{"type": "volume", "source": "models", "target": "/models"}],
            "ulimits": {"memlock": -1},
        }
        for member in STACK.members
    }
    return {"services": services, "volumes": {"models": {"name": "kvshare_models"}}}


class FakeOneOffs:
    """Containers on two machines; what they print is set by probe, errors by context and probe."""

    def __init__(self, image: str = "") -> None:
        self.image = image
        self.runs: list[tuple[str, tuple[str, ...], tuple[str, ...], str]] = []
        self.held: list[tuple[str, tuple[str, ...]]] = []
        self.errors: dict[tuple[str, str], str] = {}
        self.refuses: Callable[[Sequence[str]], str] = lambda _: ""
        self.cleaned: list[str] = []
        self.deceived = False

    def __call__(self, image: str) -> FakeOneOffs:
        self.image = image
        return self

    def run(
        self,
        context: str,
        options: Sequence[str],
        arguments: Sequence[str],
        stdin: str = "",
        timeout_s: float = 0,
    ) -> str:
        del timeout_s
        self.runs.append((context, tuple(options), tuple(arguments), stdin))
        if error := self.errors.get((context, arguments[1])) or self.refuses(options):
            raise CouldNotCheckError(error)
        return self._answer(context, arguments)

    def _answer(self, context: str, arguments: Sequence[str]) -> str:
        if arguments[0] == "nvidia-smi":
            return "0, GPU-5f2d, NVIDIA H200, 580.65.06\n"
        if arguments[1] == "facts":
            name = "prefill" if context == "default" else "decode"
            return json.dumps(asdict(healthy().seen[name]))
        if arguments[1] == "dial":
            return json.dumps([asdict(self._dial(text)) for text in arguments[2:]])
        return json.dumps(asdict(Measurement(1.17e9, 3.1e-5)))

    def _dial(self, endpoint: str) -> Answer:
        host, _, port = endpoint.rpartition(":")
        nobody = int(port) == network.HIGHEST_CONTROL_PORT
        return Answer(host, int(port), 0.001, "connection refused" if nobody and not self.deceived else "")

    @contextmanager
    def hold(self, context: str, options: Sequence[str], arguments: Sequence[str]) -> Iterator[str]:
        del options
        self.held.append((context, tuple(arguments)))
        if error := self.errors.get((context, arguments[1])):
            raise CouldNotCheckError(error)
        if arguments[1] == "link-serve":
            yield json.dumps(asdict(Ports((5001, 5003), 5002)))
            return
        yield json.dumps(asdict(Held((), ())))

    def remove_leftovers(self, names: Sequence[str]) -> None:
        self.cleaned += names

    def probes(self, name: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...], str]]:
        return [run for run in self.runs if run[2][:2] == ("probe", name)]


@pytest.fixture
def one_offs(monkeypatch: pytest.MonkeyPatch) -> FakeOneOffs:
    fake = FakeOneOffs()
    evidence = healthy()
    monkeypatch.setattr(gather, "OneOffs", fake)
    monkeypatch.setattr(gather, "read_stack", lambda _: STACK)
    monkeypatch.setattr(gather, "resolved_config", lambda _, context: config(context))
    monkeypatch.setattr(contexts, "resolve", lambda _: None)
    monkeypatch.setattr(engine_side, "look", lambda context, *_: evidence.engine(context))
    monkeypatch.setattr(engine_side, "operator", lambda: evidence.operator)
    monkeypatch.setattr(engine_side, "volumes", lambda _: ("kvshare_models",))
    monkeypatch.setattr(network, "_knock", lambda *_: "refused")
    return fake


def examine(**options: Any) -> Evidence:
    return gather.examine(SETTINGS, gather.Options(**options), lambda _: None)


def test_two_healthy_machines_are_found_ready(one_offs: FakeOneOffs) -> None:
    evidence = examine()
    diagnosis = judge(evidence, checks.select((), ()))
    assert diagnosis.exit_code == 0, diagnosis.sentence
    assert evidence.seen == healthy().seen
    assert one_offs.image == IMAGE.name


def test_probes_run_with_what_the_server_itself_gets(one_offs: FakeOneOffs) -> None:
    examine()
    (_, options, _, stdin), _ = one_offs.probes("facts")
    assert "--env=PYTHONHASHSEED=123" in options
    assert "--mount=type=volume,source=kvshare_models,target=/models,readonly" in options
    assert "--ulimit=memlock=-1" in options
    assert json.loads(stdin) == {"hub_token": "hf_secret"}
    assert not any("hf_secret" in option for run in one_offs.runs for option in run[1] + run[2])


def test_a_volume_that_is_not_there_is_not_made(
    one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_side, "volumes", lambda _: ())
    examine()
    assert not any("--mount" in option for _, options, _, _ in one_offs.probes("facts") for option in options)


def test_what_the_engine_refuses_is_kept_and_the_probe_runs_without_it(one_offs: FakeOneOffs) -> None:
    one_offs.refuses = lambda options: "error setting rlimit" if "--ulimit=memlock=-1" in options else ""
    evidence = examine()
    assert [node.refused for node in evidence.nodes] == ["error setting rlimit"] * 2
    assert set(evidence.seen) == {"prefill", "decode"}


def test_a_folder_that_is_not_there_leaves_the_model_missing_and_no_more() -> None:
    described = config("default")
    described["services"]["prefill"]["volumes"] = [{"type": "bind", "source": "/absent", "target": "/models"}]
    fake = FakeOneOffs()
    fake.refuses = lambda options: "bind source path does not exist: /absent" if _mounts(options) else ""
    node = probing.look(healthy().nodes[0], service_of(described, "prefill"), (), "", fake)  # type: ignore[arg-type]
    assert node.facts is not None
    assert node.refused == "bind source path does not exist: /absent"


def _mounts(options: Sequence[str]) -> bool:
    return any(option.startswith("--mount=type=bind") for option in options)


def test_devices_and_limits_of_rdma_go_to_the_probe() -> None:
    described = config("gpu-b")
    described["services"]["decode"] |= {
        "devices": [{"source": "/dev/infiniband", "target": "/dev/infiniband", "permissions": "rwm"}],
        "cap_add": ["IPC_LOCK"],
        "ulimits": {"memlock": -1, "nofile": {"soft": 1, "hard": 2}},
    }
    assert service_of(described, "decode").limits == (
        "--ulimit=memlock=-1",
        "--ulimit=nofile=1:2",
        "--cap-add=IPC_LOCK",
        "--device=/dev/infiniband:/dev/infiniband",
    )


def test_an_image_of_another_version_is_named(one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_offs, "_answer", lambda *_: '{"hostname": "x"}')
    evidence = examine(network=False)
    assert all("another version (Facts: " in node.error for node in evidence.nodes)


def test_an_engine_that_does_not_answer_is_evidence(
    one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(context: str, *_: object) -> Engine:
        if context == "gpu-b":
            raise CouldNotCheckError("context gpu-b: no Docker engine answers at ssh://x.")
        return healthy().engine(context)

    monkeypatch.setattr(engine_side, "look", look)
    evidence = examine()
    diagnosis = judge(evidence, checks.select((), ()))
    assert diagnosis.exit_code == 3
    assert evidence.engine("gpu-b").error == "no Docker engine answers at ssh://x"
    assert {run[0] for run in one_offs.runs} == {"default"}
    assert evidence.links[0].not_tried == "decode could not be looked at"


def test_an_engine_may_be_waited_for(one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch) -> None:
    del one_offs
    asked: list[str] = []

    def look(context: str, *_: object) -> Engine:
        asked.append(context)
        if asked.count(context) < 3:
            raise CouldNotCheckError("booting")
        return healthy().engine(context)

    monkeypatch.setattr(engine_side, "look", look)
    monkeypatch.setattr(gather, "POLL_S", 0.01)
    assert not any(engine.error for engine in examine(wait_s=30, network=False).engines)
    asked.clear()
    assert all(engine.error for engine in examine(wait_s=0, network=False).engines)


def test_a_context_that_does_not_exist_is_the_users_mistake(
    one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(context: str) -> None:
        raise KvshareError(f"Docker has no context {context}.")

    monkeypatch.setattr(contexts, "resolve", resolve)
    with pytest.raises(KvshareError, match="no context default") as refusal:
        examine()
    assert refusal.value.exit_code == 2
    assert one_offs.runs == []


def test_leftovers_are_removed_even_if_the_look_fails(
    one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(network, "dial", broken)
    with pytest.raises(RuntimeError):
        examine()
    assert one_offs.cleaned == ["default", "gpu-b"]


# --- connections --------------------------------------------------------------------------------------------


def test_every_route_of_the_stack_is_dialled_from_where_it_is_used(one_offs: FakeOneOffs) -> None:
    examine()
    by_context = {context: arguments[2:] for context, _, arguments, _ in one_offs.probes("dial")}
    assert set(by_context["gpu-b"]) == {
        *(f"192.168.110.13:{port}" for port in (9000, 8300, 8400, 8600, 8200, 8201, 8700, 19999)),
    }
    assert {"192.168.110.97:8011", "192.168.110.97:8501", "192.168.110.97:8202"} <= set(by_context["default"])


def test_listeners_stand_only_where_the_stack_does_not(one_offs: FakeOneOffs) -> None:
    evidence = running(healthy())
    with ExitStack() as held:
        network.listen(evidence, one_offs, held)  # type: ignore[arg-type]
    assert one_offs.held == [
        ("default", ("probe", "listen", "192.168.110.13:8700")),
        ("gpu-b", ("probe", "listen", "192.168.110.97:8700")),
    ]


def test_a_listener_that_does_not_start_is_named(one_offs: FakeOneOffs) -> None:
    one_offs.errors["gpu-b", "listen"] = "was not ready in 45 s"
    evidence = examine()
    assert evidence.unheld == ("context gpu-b: was not ready in 45 s",)


def test_a_dialler_that_fails_is_a_failed_connection(one_offs: FakeOneOffs) -> None:
    one_offs.errors["gpu-b", "dial"] = "a container on it did not end in 60 s"
    failed = [one for one in examine().dialed if one.error and one.source != OPERATOR]
    assert {one.source for one in failed} == {"decode"}


def test_an_operator_beside_a_node_knocks_at_nothing(one_offs: FakeOneOffs) -> None:
    del one_offs
    evidence = replace(healthy(), operator=replace(healthy().operator, addresses=("192.168.110.13",)))
    assert network._from_operator(evidence) == ()


def test_a_proxy_that_answers_every_port_proves_nothing(one_offs: FakeOneOffs) -> None:
    one_offs.deceived = True
    evidence = examine()
    between = [o for o in evidence.dialed if o.source != OPERATOR and o.source != o.target != "controller"]
    assert {one.error for one in between} == {network.ANSWERS_ALL}
    assert judge(evidence, {"DOC-NET-02", "DOC-NET-03"}).exit_code == 1
    assert not any(one.purpose == network.NOBODYS_PORT for one in evidence.dialed)


@pytest.mark.parametrize(("nobody", "expected"), [("refused", WARNING), ("", SUCCESS)])
def test_a_port_that_answers_the_operator_counts_only_if_not_every_port_does(
    nobody: str, expected: str, one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch
) -> None:
    del one_offs
    monkeypatch.setattr(network, "_knock", lambda _, port: nobody if port == 19999 else "")
    (found,) = judge(examine(), {"DOC-NET-04"}).results
    assert found.result == expected


def test_routes_are_those_of_the_running_stack() -> None:
    found = {(source, target.name, port.number) for source, target, port in network.required(STACK)}
    assert ("gpu-b", "controller", 8600) in found
    assert ("default", "decode", 8501) in found
    assert ("gpu-b", "prefill", 8501) not in found
    assert ("gpu-b", "prefill", 8010) not in found, "only the client, beside prefill, needs the API"
    assert {port.number for _, port in network.private(STACK)} == {
        *(9000, 8300, 8400, 8600, 8500, 8200, 8201, 8501, 8202, 8203)
    }


# --- links --------------------------------------------------------------------------------------------------


def test_the_link_is_measured_with_the_servers_own_ucx_settings(one_offs: FakeOneOffs) -> None:
    evidence = examine()
    ((context, options, arguments, _),) = one_offs.probes("link-measure")
    assert context == "default", "the owner of KV writes, so prefill is the near end"
    assert arguments[2:] == ("192.168.110.97", "5001,5003", "5002")
    assert {"--env=UCX_TLS=tcp", "--env=UCX_NET_DEVICES=eth0", "--ulimit=memlock=-1"} <= set(options)
    assert evidence.links[0].bytes_per_s == 1.17e9


def test_a_link_that_cannot_be_measured_says_why(one_offs: FakeOneOffs) -> None:
    one_offs.errors["default", "link-measure"] = "ucx_perftest: no usable transports"
    assert examine().links[0].error == "ucx_perftest: no usable transports"


def test_a_link_behind_a_firewall_is_not_tried(one_offs: FakeOneOffs) -> None:
    one_offs.errors["default", "dial"] = "no answer in 3 s"
    assert examine().links[0].not_tried == "decode's ports cannot be reached from prefill"
    assert one_offs.probes("link-measure") == []


SCRAPE = """# TYPE vllm:prompt_tokens_by_source counter
vllm:prompt_tokens_by_source_total{source="local_compute"} 10000.0
vllm:prompt_tokens_by_source_total{source="local_cache_hit"} 90000.0
# TYPE vllm:request_prefill_time_seconds histogram
vllm:request_prefill_time_seconds_bucket{le="+Inf"} 9.0
vllm:request_prefill_time_seconds_count 9.0
vllm:request_prefill_time_seconds_sum 25.0
"""


def test_prefill_speed_is_measured_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links.nodes, "fetch", lambda *_: SCRAPE)
    assert links.prefill_speed(running(healthy()), None).tokens_per_s == 400
    assert links.prefill_speed(running(healthy()), None).how == "measured on the running server"
    assert links.prefill_speed(healthy(), None).how.startswith("assumed")
    assert links.prefill_speed(running(healthy()), 7.0).how == "as given"


def test_too_few_tokens_measure_nothing() -> None:
    assert links.speed_of(SCRAPE.replace("10000.0", "200.0")) is None
    assert links.speed_of(SCRAPE.replace("sum 25.0", "sum 0.0")) is None


# --- engines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0, GPU-5f2d, NVIDIA H200, 580.65.06\n", Gpus("580.65.06", (("0", "GPU-5f2d", "NVIDIA H200"),))),
        ("No devices were found\n", Gpus(error="nvidia-smi said: No devices were found")),
        ("", Gpus()),
    ],
)
def test_gpus_are_read_from_nvidia_smi(text: str, expected: Gpus) -> None:
    assert probing.parse_gpus(text) == expected


class Clocked:
    """An engine whose clock is ahead, and whose answers take a while."""

    def __init__(self, ahead_s: float, takes_s: float) -> None:
        self.ahead_s, self.takes_s = ahead_s, takes_s

    def info(self) -> dict[str, str]:
        time.sleep(self.takes_s / 2)
        told = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + self.ahead_s))
        fraction = f"{(time.time() + self.ahead_s) % 1:.9f}"[1:]
        time.sleep(self.takes_s / 2)
        return {"SystemTime": f"{told}{fraction}Z"}

    def close(self) -> None:
        pass


def test_the_clock_is_read_with_the_round_trip_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_side.sdk, "connect", lambda _: Clocked(ahead_s=-30.0, takes_s=0.2))
    clock = engine_side.read_clock("x")
    assert clock is not None
    assert clock.ahead_s == pytest.approx(-30.0, abs=0.1)
    assert clock.uncertain_s == pytest.approx(0.1, abs=0.09)


def test_a_clock_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise OSError

    monkeypatch.setattr(engine_side.sdk, "connect", refuse)
    assert engine_side.read_clock("x") is None


# --- one-off containers -------------------------------------------------------------------------------------


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a `docker` of our own on PATH; it notes each call in the file that is returned."""

    def install(body: str) -> Path:
        calls, program = tmp_path / "calls", tmp_path / "bin/docker"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\ncase "$3" in run) {body} ;; esac\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        return calls

    return install


def test_a_container_that_does_not_end_is_removed(docker: Callable[[str], Path]) -> None:
    calls = docker("exec sleep 60")
    with pytest.raises(CouldNotCheckError, match="did not end in 1 s"):
        OneOffs("image").run("gpu-b", (), ("probe",), timeout_s=1)
    run, removal = calls.read_text().splitlines()
    assert "--rm" in run
    assert "--pull never" in run
    assert removal.startswith("--context gpu-b rm --force kvshare-doctor-")


def test_what_a_container_says_when_it_fails_is_the_reason(docker: Callable[[str], Path]) -> None:
    docker(
        "echo 'docker: Error response from daemon: no such image.' >&2; "
        "echo \"See 'docker run --help'.\" >&2; exit 125"
    )
    with pytest.raises(CouldNotCheckError, match=r"no such image$"):
        OneOffs("image").run("gpu-b", (), ("probe",))


def test_a_held_container_ends_when_its_input_closes(docker: Callable[[str], Path]) -> None:
    calls = docker("echo ready; cat > /dev/null; echo ended >> $0.ended")
    with OneOffs("image").hold("gpu-b", (), ("probe", "listen")) as said:
        assert said == "ready\n"
    assert (calls.parent / "bin/docker.ended").exists()
    assert "rm --force" not in calls.read_text()


def test_a_held_container_that_does_not_end_is_removed(
    docker: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "END_TIMEOUT_S", 0.2)
    calls = docker("echo ready; exec sleep 60")
    with OneOffs("image").hold("gpu-b", (), ("probe", "listen")):
        pass
    assert "rm --force kvshare-doctor-" in calls.read_text()


def test_a_held_container_that_never_is_ready_ends_in_a_sentence(
    docker: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "READY_TIMEOUT_S", 0.3)
    docker("exec sleep 60")
    with pytest.raises(CouldNotCheckError, match="was not ready"), OneOffs("i").hold("gpu-b", (), ("probe",)):
        pass


def test_a_held_container_that_fails_says_why(docker: Callable[[str], Path]) -> None:
    docker("echo 'kvshare: expected a probe and found none' >&2; exit 2")
    with (
        pytest.raises(CouldNotCheckError, match="expected a probe"),
        OneOffs("i").hold("gpu-b", (), ("probe",)),
    ):
        pass


def test_leftovers_are_found_by_their_label(
    docker: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    docker("true")
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "abc\n" if "ps" in command else "", "")

    monkeypatch.setattr(subprocess, "run", run)
    OneOffs("image").remove_leftovers(["default", "gpu-b"])
    assert [command[2:4] for command in asked] == [
        ["default", "ps"],
        ["default", "rm"],
        ["gpu-b", "ps"],
        ["gpu-b", "rm"],
    ]
    assert all(f"label={containers.LABEL}=" in " ".join(c) for c in asked if "ps" in c)
