"""How the doctor looks: engines and one-off containers are stand-ins, all between is real."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvshare.checking.registry import SUCCESS, WARNING
from kvshare.config.settings import Settings
from kvshare.contract import Answer, Held, Measurement, Ports
from kvshare.doctor import checks, containers, gather, links, network, probing
from kvshare.doctor import engines as engine_side
from kvshare.doctor.containers import OneOffs
from kvshare.doctor.evidence import OPERATOR, Behind, Engine, Evidence, Gpus
from kvshare.doctor.judgement import judge
from kvshare.doctor.services import service_of
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.site import attached, contexts
from kvshare.site.attached import EngineError
from kvshare.site.base import answered, held
from kvshare.site.engine import Place, engine
from tests.unit.build import STACK, WITH_GATEWAY
from tests.unit.doctor_build import IMAGE, environment, healthy, running
from tests.unit.fake_docker import FakeDocker

SETTINGS = Settings(Path("/nowhere"), {"DEVICE": "cpu", "DECODE_CONTEXT": "gpu-b", "HF_TOKEN": "hf_secret"})


def config(context: str) -> dict[str, Any]:
    """`docker compose config`, as far as the doctor reads it."""
    del context
    services: dict[str, Any] = {
        member.service: {
            "image": IMAGE.name,
            "environment": {**environment(member), "UCX_TLS": "", "KVSHARE_HOST": member.host},
            "volumes": [{"type": "volume", "source": "models", "target": "/models"}],
            "ulimits": {"memlock": -1},
        }
        for member in WITH_GATEWAY.members
    }
    return {"services": services, "volumes": {"models": {"name": "kvshare_models"}}}


@dataclass(frozen=True)
class FakeContainer:
    """One of the containers of ``FakeOneOffs``."""

    of: FakeOneOffs
    context: str
    place: Place
    arguments: tuple[str, ...]

    def answer(self, said: str, timeout_s: float) -> str:
        del timeout_s
        self.of.runs.append((self.context, self.place, self.arguments, said))
        self._fail(self.of.refuses(self.place))
        return self.of._answer(self.context, self.arguments)

    def first_line(self) -> str:
        self.of.held.append((self.context, self.arguments))
        self._fail()
        found = Ports((5001, 5003), 5002) if self.arguments[1] == "link-serve" else Held((), ())
        return json.dumps(asdict(found))

    def end(self) -> None:
        """Nothing is there that could end."""

    def _fail(self, refused: str = "") -> None:
        if error := self.of.errors.get((self.context, self.arguments[1])) or refused:
            raise CouldNotCheckError(error)


class FakeOneOffs:
    """Containers on two machines; what they print is set by probe, errors by context and probe."""

    def __init__(self, image: str = "") -> None:
        self.image = image
        self.runs: list[tuple[str, Place, tuple[str, ...], str]] = []
        self.held: list[tuple[str, tuple[str, ...]]] = []
        self.errors: dict[tuple[str, str], str] = {}
        self.refuses: Callable[[Place], str] = lambda _: ""
        self.cleaned: list[str] = []
        self.deceived = False

    def __call__(self, image: str) -> FakeOneOffs:
        self.image = image
        return self

    @contextmanager
    def start(self, context: str, place: Place, *arguments: str) -> Iterator[FakeContainer]:
        yield FakeContainer(self, context, place, arguments)

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

    def remove_leftovers(self, names: Sequence[str]) -> None:
        self.cleaned += names

    def probes(self, name: str) -> list[tuple[str, Place, tuple[str, ...], str]]:
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
    (_, place, _, stdin), _ = one_offs.probes("facts")
    assert place.environment["PYTHONHASHSEED"] == "123"
    assert place.mounts == (("volume", "kvshare_models", "/models"),)
    assert place.ulimits == (("memlock", -1, -1),)
    assert json.loads(stdin) == {"hub_token": "hf_secret"}
    assert not any("hf_secret" in f"{run[1]} {run[2]}" for run in one_offs.runs)


def test_a_volume_that_is_not_there_is_not_made(
    one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_side, "volumes", lambda _: ())
    examine()
    assert not any(place.mounts for _, place, _, _ in one_offs.probes("facts"))


def test_what_the_engine_refuses_is_kept_and_the_probe_runs_without_it(one_offs: FakeOneOffs) -> None:
    one_offs.refuses = lambda place: "error setting rlimit" if place.ulimits else ""
    evidence = examine()
    assert [node.refused for node in evidence.nodes] == ["error setting rlimit"] * 2
    assert set(evidence.seen) == {"prefill", "decode"}


def test_a_folder_that_is_not_there_leaves_the_model_missing_and_no_more() -> None:
    described = config("default")
    described["services"]["prefill"]["volumes"] = [{"type": "bind", "source": "/absent", "target": "/models"}]
    fake = FakeOneOffs()
    fake.refuses = lambda place: "bind source path does not exist: /absent" if place.mounts else ""
    node = probing.look(healthy().nodes[0], service_of(described, "prefill"), (), "", fake)  # type: ignore[arg-type]
    assert node.facts is not None
    assert node.refused == "bind source path does not exist: /absent"


def test_devices_and_limits_of_rdma_go_to_the_probe() -> None:
    described = config("gpu-b")
    described["services"]["decode"] |= {
        "devices": [{"source": "/dev/infiniband", "target": "/dev/infiniband", "permissions": "rwm"}],
        "cap_add": ["IPC_LOCK"],
        "ulimits": {"memlock": -1, "nofile": {"soft": 1, "hard": 2}},
    }
    place = service_of(described, "decode").place
    assert place.ulimits == (("memlock", -1, -1), ("nofile", 1, 2))
    assert place.cap_add == ("IPC_LOCK",)
    assert place.devices == ("/dev/infiniband:/dev/infiniband",)


def test_an_image_of_another_version_is_named(one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_offs, "_answer", lambda *_: '{"hostname": "x"}')
    evidence = examine(network=False)
    assert all("another version (Facts: " in node.error for node in evidence.nodes)


def test_an_engine_that_does_not_answer_is_evidence(
    one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(context: str, *_: object) -> Engine:
        if context == "gpu-b":
            raise EngineError("gpu-b", "no Docker engine answers at ssh://x", "type docker --context gpu-b")
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
        "127.0.0.1:8205",
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
    assert {("default", "prefill", 8204), ("gpu-b", "decode", 8205)} <= found, "NIXL's counters"
    assert ("default", "decode", 8205) not in found, "NIXL tells its own machine alone"
    assert ("gpu-b", "prefill", 8010) not in found, "only the client, beside prefill, needs the API"
    assert {port.number for _, port in network.private(STACK)} == {
        *(9000, 8300, 8400, 8600, 8500, 8200, 8201, 8204, 8501, 8202, 8203, 8205)
    }


# --- links --------------------------------------------------------------------------------------------------


def test_the_link_is_measured_with_the_servers_own_ucx_settings(one_offs: FakeOneOffs) -> None:
    evidence = examine()
    ((context, place, arguments, _),) = one_offs.probes("link-measure")
    assert context == "default", "the owner of KV writes, so prefill is the near end"
    assert arguments[2:] == ("192.168.110.97", "5001,5003", "5002")
    assert {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth0"}.items() <= place.environment.items()
    assert place.ulimits == (("memlock", -1, -1),)
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
    process = SimpleNamespace(answer=lambda *_: SCRAPE)
    monkeypatch.setattr(links, "engine", lambda _: SimpleNamespace(inside=lambda *_: nullcontext(process)))
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


def test_the_clock_is_read_with_the_round_trip_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose clock is 30 s behind, and whose answers take a while."""
    now = 1000.0

    def pass_by(seconds: float) -> float:
        nonlocal now
        now += seconds
        return now

    takes_s = iter((0.6, 0.2, 0.4, *[0.6] * engine_side.CLOCK_READINGS))

    def about() -> SimpleNamespace:
        half = next(takes_s) / 2
        told = pass_by(half) - 30.0
        pass_by(half)
        return SimpleNamespace(clock_s=told)

    monkeypatch.setattr(engine_side, "engine", lambda _: SimpleNamespace(about=about))
    monkeypatch.setattr(engine_side, "time", SimpleNamespace(time=lambda: now, monotonic=lambda: now))
    clock = engine_side.read_clock("x")
    assert clock is not None
    assert clock.ahead_s == pytest.approx(-30.0)
    assert clock.uncertain_s == pytest.approx(0.1)


def test_a_clock_that_cannot_be_read_is_none(fake_docker: FakeDocker) -> None:
    fake_docker.engine("gpu-b", "down")
    assert engine_side.read_clock("gpu-b") is None


def test_an_engine_is_looked_at(fake_docker: FakeDocker) -> None:
    fake_docker.add_image("gpu-b", IMAGE.name, "a")
    fake_docker.add_container("gpu-b", "decode")
    fake_docker.add_container("gpu-b", "prefill", state={"Status": "exited", "Running": False})
    found = engine_side.look("gpu-b", IMAGE.name, "kvshare")
    assert (found.machine, found.version, found.running) == ("gpu-b", "26.1.5", ("decode",))
    assert found.image is not None
    assert found.clock is not None


def test_an_engine_too_old_to_say_more_is_seen_as_that(fake_docker: FakeDocker) -> None:
    (fake_docker.engine("gpu-b") / "info.json").write_text('{"ServerVersion": "20.10.24"}')
    found = engine_side.look("gpu-b", IMAGE.name, "kvshare")
    assert (found.version, found.image, found.clock) == ("20.10.24", None, None)


# --- one-off containers -------------------------------------------------------------------------------------


def created(docker: FakeDocker) -> str:
    """Return the request that made a container on gpu-b."""
    (call,) = [call for call in docker.calls("gpu-b") if "/containers/create" in call]
    return call


def removed(docker: FakeDocker) -> list[str]:
    return [call.split()[1] for call in docker.calls("gpu-b") if call.startswith("DELETE")]


def test_a_container_that_does_not_end_is_removed(fake_docker: FakeDocker) -> None:
    fake_docker.runs("gpu-b", "exec sleep 60")
    with pytest.raises(CouldNotCheckError, match="did not end in 1 s"):
        answered(OneOffs("image").start("gpu-b", Place(), "probe"), timeout_s=1)
    assert '"AutoRemove": true' in created(fake_docker)
    assert not any("/images/create" in call for call in fake_docker.calls("gpu-b")), "nothing is pulled"
    assert [path.startswith("/containers/kvshare-doctor-") for path in removed(fake_docker)] == [True]


def test_a_container_gets_its_input_and_no_rights(fake_docker: FakeDocker) -> None:
    fake_docker.runs("gpu-b", "cat")
    place = Place({"A": "b"}, (("volume", "kvshare_models", "/models"),), (("memlock", -1, -1),), gpus=True)
    assert answered(OneOffs("image").start("gpu-b", place, "probe"), "hub_token") == "hub_token"
    made = json.loads(created(fake_docker).partition(" {")[2].join(["{", ""]))
    assert (made["Image"], made["Cmd"], made["Env"], made["OpenStdin"]) == ("image", ["probe"], ["A=b"], True)
    host = made["HostConfig"]
    assert host["Mounts"] == [
        {"Target": "/models", "Source": "kvshare_models", "Type": "volume", "ReadOnly": True}
    ]
    assert host["Ulimits"] == [{"Name": "memlock", "Soft": -1, "Hard": -1}]
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert (host["NetworkMode"], host["Init"], host["LogConfig"]["Type"]) == ("host", True, "none")
    assert host["DeviceRequests"][0]["Count"] == -1
    assert removed(fake_docker) == [], "its engine removes it when it ends"


def test_what_a_container_says_when_it_fails_is_the_reason(fake_docker: FakeDocker) -> None:
    fake_docker.runs("gpu-b", "echo 'docker: Error response from daemon: no such image.' >&2; exit 125")
    with pytest.raises(CouldNotCheckError, match=r"no such image$"):
        answered(OneOffs("image").start("gpu-b", Place(), "probe"))


def test_a_held_container_ends_when_its_input_closes(fake_docker: FakeDocker, tmp_path: Path) -> None:
    fake_docker.runs("gpu-b", f"echo ready; cat > /dev/null; echo ended >> {tmp_path}/ended")
    with held(OneOffs("image").start("gpu-b", Place(), "probe", "listen")) as said:
        assert said == "ready"
    assert (tmp_path / "ended").exists()
    assert removed(fake_docker) == []


def test_a_held_container_that_does_not_end_is_removed(
    fake_docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attached, "END_TIMEOUT_S", 0.2)
    fake_docker.runs("gpu-b", "echo ready; exec sleep 60")
    with held(OneOffs("image").start("gpu-b", Place(), "probe", "listen")):
        pass
    assert len(removed(fake_docker)) == 1


def test_a_held_container_that_never_is_ready_ends_in_a_sentence(
    fake_docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attached, "READY_TIMEOUT_S", 0.3)
    monkeypatch.setattr(attached, "END_TIMEOUT_S", 0.2)
    fake_docker.runs("gpu-b", "exec sleep 60")
    one_offs = OneOffs("i")
    with (
        pytest.raises(CouldNotCheckError, match="was not ready"),
        held(one_offs.start("gpu-b", Place(), "probe")),
    ):
        pass
    assert len(removed(fake_docker)) == 1


def test_a_held_container_that_fails_says_why(fake_docker: FakeDocker) -> None:
    fake_docker.runs("gpu-b", "echo 'kvshare: expected a probe and found none' >&2; exit 2")
    with (
        pytest.raises(CouldNotCheckError, match="expected a probe"),
        held(OneOffs("i").start("gpu-b", Place(), "probe")),
    ):
        pass


def test_leftovers_are_found_by_their_label(fake_docker: FakeDocker) -> None:
    one_offs = OneOffs("image")
    labels = {containers.LABEL: one_offs._mark}
    engine("gpu-b")._create("image", ("probe",), Place(), "left", labels)
    engine("gpu-b")._create("image", ("probe",), Place(), "another's", {containers.LABEL: "0"})
    one_offs.remove_leftovers(["default", "gpu-b"])
    assert removed(fake_docker) == ["/containers/left"]


# --- the gateway's route -----------------------------------------------------------------------------------


@pytest.fixture
def gateway(one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Evidence]:
    """A gateway that runs and says that; what the doctor saw then."""
    del one_offs
    up = running(replace(healthy(), stack=WITH_GATEWAY))
    monkeypatch.setattr(gather, "read_stack", lambda _: WITH_GATEWAY)
    monkeypatch.setattr(engine_side, "look", lambda context, *_: up.engine(context))
    monkeypatch.setattr(links, "fetch", lambda *_: "")
    container = SimpleNamespace(answer=lambda *_: json.dumps({"role": "prefill", "cluster_key": "0badcafe"}))
    monkeypatch.setattr(gather, "engine", lambda _: SimpleNamespace(inside=lambda *_: nullcontext(container)))

    def examined(said: str) -> Evidence:
        def fetch(inside: partial[None], url: str) -> str:
            assert inside.args == ("kvshare-gateway-1",)
            assert url == "http://192.168.110.13:8000/health"
            if not said:
                raise CouldNotCheckError("gateway has no container on context default.")
            return said

        monkeypatch.setattr(gather, "fetch", fetch)
        return examine()

    return examined


def test_a_running_gateway_is_asked_for_its_servers(gateway: Callable[[str], Evidence]) -> None:
    nodes = [{"place": "192.168.110.13:8010", "up": True}, {"place": "192.168.110.97:8011", "up": False}]
    behind = gateway(json.dumps({"nodes": nodes})).behind
    assert behind == Behind({"192.168.110.13:8010": True, "192.168.110.97:8011": False})


@pytest.mark.parametrize(
    ("said", "error"), [("", "has no container"), ("<html>", "not the gateway"), ("{}", "not the gateway")]
)
def test_a_gateway_that_says_nothing_of_use_is_no_traceback(
    gateway: Callable[[str], Evidence], said: str, error: str
) -> None:
    behind = gateway(said).behind
    assert behind is not None
    assert error in behind.error


def test_engines_that_run_are_asked_which_cluster_key_they_have(gateway: Callable[[str], Evidence]) -> None:
    assert gateway("{}").keys == dict.fromkeys(("controller", "prefill", "decode"), "0badcafe")


@pytest.mark.parametrize(
    ("key", "name"),
    [({"CLUSTER_KEY": "5b" * 32}, "33ea1ee7"), ({"CLUSTER_KEY_FILE": "off"}, ""), ({}, None)],
    ids=["given", "off", "made by the next start"],
)
def test_the_key_of_the_next_start_is_told_too(
    one_offs: FakeOneOffs, key: dict[str, str], name: str | None
) -> None:
    del one_offs
    settings = Settings(SETTINGS.root, {**SETTINGS.values, **key})
    evidence = gather.examine(settings, gather.Options(), lambda _: None)
    assert (evidence.keys, evidence.next_key) == ({}, name)


def test_a_gateway_that_does_not_run_is_not_asked(
    one_offs: FakeOneOffs, monkeypatch: pytest.MonkeyPatch
) -> None:
    del one_offs
    monkeypatch.setattr(gather, "read_stack", lambda _: WITH_GATEWAY)
    assert examine().behind is None
