"""The probe in the engine image: real sockets, a stand-in for ucx_perftest, and neither vLLM nor LMCache."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar, cast

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docker/engine"))

from kvshare import records  # noqa: E402
from kvshare.contract import Endpoint, Facts, Hub, Nic, Ports  # noqa: E402
from kvshare_engine import facts, fingerprint, hardware, hub, link, models, probe, reach  # noqa: E402
from kvshare_engine.environment import Controller, Server  # noqa: E402
from tests.unit.test_engine_package import CONTROLLER, DECODE  # noqa: E402

LOOPBACK = {**DECODE, "KVSHARE_HOST": "127.0.0.1", "KVSHARE_DEVICE": "cpu"}
REPORT = """iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr
  10,0.150,33770.609,33770.609,947.57,947.57,30,30
"""


@pytest.fixture
def no_engine_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the image would have: its packages, its patches, its LMCache file."""
    monkeypatch.setattr(fingerprint, "DISTRIBUTIONS", ("pytest",))
    monkeypatch.setattr(fingerprint, "PATCHES", tmp_path / "none.json")
    monkeypatch.setattr(facts, "LMCACHE_CONFIG", ROOT / "configs/lmcache.yaml")
    for name in [name for name in os.environ if name.startswith(("LMCACHE_", "UCX_"))]:
        monkeypatch.delenv(name)


def gathered(environment: dict[str, str] | None = None) -> Facts:
    server = Server.from_environment(environment or LOOPBACK)
    return facts.gather(server, Controller.from_environment(CONTROLLER), "")


@pytest.mark.usefixtures("no_engine_inside")
def test_what_the_probe_prints_is_what_the_tool_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_LOOKUP_TIMEOUT_MS", "4500")
    monkeypatch.setattr(hub, "ask", lambda *_: (Hub("https://hub", False, 401), {}))
    found = gathered()
    read = records.cls_from(Facts, json.loads(json.dumps(dataclasses.asdict(found))))
    assert (read.lookup_timeout_ms, read.lmcache["p2p_host"]) == (4500, "127.0.0.1")
    assert read.ucx.devices == "lo"
    assert read.holder("127.0.0.1") is not None
    assert read.hub is not None
    assert read.hub.status == 401
    assert read.memory_total > read.memory_available > 0
    assert read.disk_free > 0


@pytest.mark.usefixtures("no_engine_inside")
def test_a_host_that_is_not_this_machines_is_a_finding_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ask", lambda *_: (None, {}))
    found = gathered({**LOOPBACK, "KVSHARE_HOST": "203.0.113.7"})
    assert found.ucx.error.startswith("expected 203.0.113.7 to be an address of this machine")
    assert found.ucx.devices == ""


@pytest.mark.usefixtures("no_engine_inside")
def test_the_hub_is_not_asked_for_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ask", lambda *_: pytest.fail("asked"))
    assert gathered({**LOOPBACK, "KVSHARE_MODEL": "demo"}).model.layers == 10
    assert gathered({**LOOPBACK, "KVSHARE_MODEL": "/models/absent"}).hub is None


@pytest.mark.usefixtures("no_engine_inside")
@pytest.mark.parametrize(
    ("model", "length", "longest"),
    [("demo", "auto", 8192), ("demo", "4k", 4000), ("/models/absent", "auto", None)],
)
def test_a_length_that_vllm_chooses_is_at_most_the_models(
    model: str, length: str, longest: int | None
) -> None:
    found = gathered({**LOOPBACK, "KVSHARE_MODEL": model, "KVSHARE_MAX_MODEL_LEN": length})
    assert found.max_model_len == longest


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {
                "num_hidden_layers": 32,
                "num_key_value_heads": 8,
                "num_attention_heads": 32,
                "hidden_size": 4096,
            },
            (32, 8, 128),
        ),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, (2, 4, 16)),
        (
            {
                "text_config": {
                    "num_hidden_layers": 3,
                    "num_key_value_heads": 1,
                    "head_dim": 256,
                    "num_attention_heads": 8,
                }
            },
            (3, 1, 256),
        ),
    ],
)
def test_the_models_shape_is_read_from_its_config(
    config: dict[str, Any], expected: tuple[int, int, int], tmp_path: Path
) -> None:
    cached = tmp_path / "huggingface/hub/models--org--name/snapshots/abc"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps(config))
    for name in ("org/name", str(cached)):
        model = models.find(name, volume=tmp_path)
        assert model.found
        assert (model.layers, model.kv_heads, model.head_dim) == expected


def test_a_model_without_a_readable_config_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{half")
    assert not models.find(str(tmp_path), volume=tmp_path).found
    assert not models.find("org/name", volume=tmp_path).found


def test_a_revision_is_a_branch_that_was_fetched_or_a_commit(tmp_path: Path) -> None:
    cache = tmp_path / "huggingface/hub/models--org--name"
    for folder in ("refs", "snapshots/abc", "snapshots/def"):
        (cache / folder).mkdir(parents=True)
    for commit, layers in (("abc", 1), ("def", 2)):
        (cache / "snapshots" / commit / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
    (cache / "refs/v1").write_text("abc")
    assert models.find("org/name", "v1", volume=tmp_path).layers == 1
    assert models.find("org/name", "def", volume=tmp_path).layers == 2
    assert not models.find("org/name", "v2", volume=tmp_path).found


def fine_tune(folder: Path, number: int) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
    (folder / "model.safetensors").write_bytes(bytes([number]) * 1000)
    return folder


def test_the_files_of_two_fine_tunes_differ_in_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_lmcache", lambda: ROOT / "docker/patches/lmcache-0.5.6/files/lmcache")
    one, same, other = (models.digests(str(fine_tune(tmp_path / n, int(n[0])))) for n in ("1", "1b", "2"))
    assert one == same
    assert one["config"] == other["config"]
    assert one["weights"] != other["weights"]
    (tmp_path / "1/model.safetensors").unlink()
    assert models.digests(str(tmp_path / "1")).keys() == {"config"}
    assert models.digests("org/not-there", volume=tmp_path) == {}


class HubServer(BaseHTTPRequestHandler):
    """Answers as the hub does: a redirect on its own host, then the file; or as its name says."""

    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        model = self.path.split("/")[2]
        if model == "gated":
            self.send_response(403)
        elif model == "elsewhere":
            self.send_response(307)
            self.send_header(
                "Location", f"http://localhost:{cast(HTTPServer, self.server).server_port}/stolen"
            )
        elif self.path.startswith("/org/"):
            self.send_response(307)
            self.send_header("Location", "/api/resolve-cache/config.json")
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"num_hidden_layers": 3, "layer_types": ["mamba"]}')
            return
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[HubServer]]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    HubServer.asked.clear()
    with HTTPServer(("127.0.0.1", 0), HubServer) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield HubServer
        server.shutdown()


def test_the_hub_is_asked_with_the_token_for_the_config(hub_server: type[HubServer]) -> None:
    answer, config = hub.ask("org/name", "hf_secret", "v1")
    assert (answer.status, answer.error, answer.token_given) == (200, "", True)
    assert config["num_hidden_layers"] == 3
    assert hub_server.asked[0] == ("/org/name/resolve/v1/config.json", "Bearer hf_secret")
    hub.ask("org/name", "")
    assert ("/org/name/resolve/main/config.json", None) in hub_server.asked


def test_a_redirect_does_not_take_the_token_elsewhere(hub_server: type[HubServer]) -> None:
    answer, config = hub.ask("org/elsewhere", "hf_secret")
    assert (answer.status, config) == (307, {})
    assert len(hub_server.asked) == 1


@pytest.mark.usefixtures("hub_server")
def test_a_hub_that_refuses_is_a_status() -> None:
    assert hub.ask("org/gated", "")[0].status == 403


def test_a_hub_that_cannot_be_reached_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    answer, config = hub.ask("org/name", "")
    assert (answer.status, config) == (None, {})
    assert "refused" in answer.error


@pytest.mark.usefixtures("no_engine_inside", "hub_server")
def test_what_the_hub_says_of_a_model_is_known_before_it_is_fetched() -> None:
    found = gathered({**LOOPBACK, "KVSHARE_MODEL": "org/name"}).model
    assert (found.found, found.layers) == (False, 3)
    assert "running state (mamba)" in found.unshareable


def test_ucx_devices_are_read_from_ucx_info() -> None:
    tcp = "#      Transport: tcp\n#         Device: eth0\n#         Type: network\n"
    text = f"{tcp}#      Transport: self\n#         Device: memory\n"
    assert facts.parse_ucx_info(text) == ("tcp/eth0", "self/memory")


@pytest.mark.parametrize(("made", "kind"), [("bridge", "bridge"), ("device", "card"), ("", "virtual")])
def test_kinds_of_devices(made: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "eth0" / made).mkdir(parents=True)
    assert facts._kind(tmp_path / "eth0") == kind


def test_hardware_is_this_machine_and_the_device_behind_ucxs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ens1").mkdir()
    (tmp_path / "ens1/speed").write_text("100000\n")
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name : Some CPU\n")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H200, 580.65.06'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(hardware, "SYSFS_NET", tmp_path)
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = hardware.look("ens1:1")
    assert found.nic == Nic("ens1", "100000", None)
    assert (found.machine.cpu, found.machine.gpu) == ("Some CPU", "NVIDIA H200, 580.65.06")


def test_hardware_without_a_gpu_and_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = hardware.look("")
    assert (found.nic, found.machine.gpu, found.machine.cores) == (None, None, os.cpu_count())


# --- ports --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_what_listens_can_be_dialled_and_what_does_not_says_why() -> None:
    free = Endpoint("127.0.0.1", free_port())
    with reach.listening([free]) as held:
        assert held.held == (free,)
        assert free in reach.taken()
        (answer,) = reach.dial([free])
        assert answer.error == ""
        assert answer.seconds > 0
    (answer,) = reach.dial([free])
    assert answer.error == "connection refused"


def test_a_port_that_is_taken_or_no_address_of_ours_is_refused_and_the_others_are_held() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        wanted = [
            Endpoint("127.0.0.1", port),
            Endpoint("203.0.113.7", 8010),
            Endpoint("127.0.0.1", 0),
        ]
        with reach.listening(wanted) as held:
            assert [refusal.error for refusal in held.refused] == [
                "address already in use",
                "cannot assign requested address",
            ]
            assert held.held == tuple(wanted[2:])


def test_endpoints_are_read_with_colons_in_the_host() -> None:
    assert reach.endpoint("192.168.110.13:8010") == Endpoint("192.168.110.13", 8010)
    assert reach.endpoint("::1:8010") == Endpoint("::1", 8010)


# --- the link -----------------------------------------------------------------------------------------------

FAR_END = """
import socket, sys
port = int(sys.argv[sys.argv.index("-p") + 1])
if len(sys.argv) == 3:  # the far end waits for one test
    with socket.create_server(("", port)) as s:
        s.accept()
    sys.exit()
socket.create_connection((sys.argv[1], port), 5).close()
test = sys.argv[sys.argv.index("-t") + 1]
print("iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr")
print("10,1.0,2.0,31.5,900.0,1000.0,30,30")
"""


@pytest.fixture
def perftest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for ucx_perftest on PATH: both ends really meet on TCP."""
    program = tmp_path / link.PROGRAM
    program.write_text(f"#!{sys.executable}\n{FAR_END}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return program


@pytest.mark.parametrize(("lanes", "expected"), [("1", 1000), ("3", 3000)])
def test_both_ends_meet_and_the_connections_add_up(
    perftest: Path, monkeypatch: pytest.MonkeyPatch, lanes: str, expected: int
) -> None:
    del perftest
    monkeypatch.setenv("KVSHARE_LANES", lanes)
    with link.serving() as ports:
        found = link.measure("127.0.0.1", ports)
    assert found.error == ""
    assert found.bytes_per_s == pytest.approx(expected * 1024 * 1024)
    assert found.latency_s == pytest.approx(31.5e-6)


def test_the_ports_are_free_again_when_the_far_end_is_left(
    perftest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    much_memory = "held = bytearray(300 * 2**20)\nheld[::4096] = bytes([1]) * len(held[::4096])\n"
    perftest.write_text(f"#!{sys.executable}\n{much_memory}{FAR_END}")
    # Below the range in which another test's port could be one of these by chance.
    monkeypatch.setenv("UCX_TCP_PORT_RANGE", "28710-28712")
    monkeypatch.setenv("KVSHARE_LANES", "2")
    with link.serving() as ports:
        own = {*ports.bandwidth, ports.latency}
    assert not own & {place.port for place in reach.taken()}


def test_the_far_end_stays_in_the_range_that_the_firewall_lets_through(
    perftest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del perftest
    monkeypatch.setenv("KVSHARE_LANES", "2")
    monkeypatch.setenv("UCX_TCP_PORT_RANGE", "28700-28709")
    with socket.create_server(("", 28709)), link.serving() as ports:
        assert (ports.latency, *ports.bandwidth) == (28708, 28707, 28706)
    monkeypatch.setenv("UCX_TCP_PORT_RANGE", "28700-28700")
    with pytest.raises(SystemExit), link.serving():
        pass
    assert "expected 3 free ports in UCX_TCP_PORT_RANGE=28700-28700 and found 1" in capsys.readouterr().err


def test_a_node_with_fewer_lanes_measures_on_those(perftest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del perftest
    monkeypatch.setenv("KVSHARE_LANES", "4")
    with link.serving() as ports:
        monkeypatch.setenv("KVSHARE_LANES", "2")
        assert link.measure("127.0.0.1", ports).bytes_per_s == pytest.approx(2000 * 1024 * 1024)


def test_a_failing_test_says_what_the_program_said(perftest: Path) -> None:
    perftest.write_text("#!/bin/sh\necho 'UCX  ERROR no usable transports' >&2\nexit 1\n")
    assert link.measure("127.0.0.1", Ports((1,), 2)).error == "UCX ERROR no usable transports"


def test_a_test_without_end_is_ended(perftest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "TEST_TIMEOUT_S", 0.3)
    perftest.write_text("#!/bin/sh\nexec sleep 30\n")
    assert "did not end in" in link.measure("127.0.0.1", Ports((1,), 2)).error


def test_a_far_end_that_does_not_listen_ends_with_a_sentence(
    perftest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(link, "START_TIMEOUT_S", 0.3)
    perftest.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(SystemExit), link.serving():
        pass
    assert "expected ucx_perftest to listen" in capsys.readouterr().err


def test_figures_are_read_from_the_report() -> None:
    assert link.figures(REPORT)["overall_bw"] == 947.57
    with pytest.raises(ValueError, match="printed no report"):
        link.figures("segmentation fault\n")


# --- the command --------------------------------------------------------------------------------------------


def test_an_unknown_probe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        probe.run(["nothing"])
    assert end.value.code == 2
    assert "expected a probe" in capsys.readouterr().err


def test_dial_prints_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe.run(["dial", f"127.0.0.1:{server.getsockname()[1]}"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["error"] == ""
