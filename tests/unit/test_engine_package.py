"""What the engine image's entrypoint makes of its environment; nothing here needs vLLM or LMCache."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docker/engine"))

from kvshare.contract import Hub, bearer_of, folder_of  # noqa: E402
from kvshare.refusals import refusal_of, refusal_of_drafts  # noqa: E402
from kvshare_engine import __main__ as entrypoint  # noqa: E402
from kvshare_engine import cluster_key, controller, fingerprint, health, hub, models, server, transport  # noqa: E402
from kvshare_engine.environment import Controller, Server  # noqa: E402

CONTROLLER = {
    "KVSHARE_CONTROLLER_HOST": "192.168.110.13",
    "KVSHARE_CONTROLLER_HTTP_PORT": "9000",
    "KVSHARE_CONTROLLER_PULL_PORT": "8300",
    "KVSHARE_CONTROLLER_REPLY_PORT": "8400",
    "KVSHARE_CONTROLLER_HEARTBEAT_PORT": "8600",
}
DECODE = {
    "KVSHARE_ROLE": "decode",
    "KVSHARE_INSTANCE": "lmcache_instance_2",
    "KVSHARE_HOST": "192.168.110.97",
    "KVSHARE_API_PORT": "8011",
    "KVSHARE_GPUS": "0",
    "KVSHARE_CPU_RANKS": "1",
    "KVSHARE_RANK_PORT_STEP": "10",
    "KVSHARE_WORKER_PORT": "8501",
    "KVSHARE_P2P_INIT_PORT": "8202",
    "KVSHARE_P2P_LOOKUP_PORT": "8203",
    "KVSHARE_NIXL_PORT": "8205",
    "KVSHARE_MODEL": "some/model",
    "KVSHARE_DTYPE": "auto",
    "KVSHARE_KV_CACHE_DTYPE": "fp8",
    "KVSHARE_MAX_MODEL_LEN": "1600",
    "KVSHARE_KV_TRANSFER_CONFIG": '{"kv_connector": "LMCacheConnectorV1"}',
    "KVSHARE_MODEL_REVISION": "v1",
    "KVSHARE_VLLM_ARGS": "--gpu-memory-utilization 0.9",
    "KVSHARE_USER_VLLM_ARGS": "--chat-template '/models/a chat.jinja'",
    "KVSHARE_DEVICE": "cuda",
    "KVSHARE_TRANSPORT": "tcp",
}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, whole names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_of_the_tool_the_image_needs_two_files_alone() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    assert "COPY tools/kvshare/contract.py tools/kvshare/refusals.py /opt/kvshare/kvshare/" in dockerfile
    files = (ROOT / "docker/engine/kvshare_engine").glob("*.py")
    of_the_tool = {name for path in files for name in imported(path) if name.split(".")[0] == "kvshare"}
    assert {".".join(name.split(".")[:2]) for name in of_the_tool} == {"kvshare.contract", "kvshare.refusals"}
    for copied in ("contract.py", "refusals.py"):
        stands_on = {name.split(".")[0] for name in imported(ROOT / "tools/kvshare" / copied)}
        assert stands_on <= sys.stdlib_module_names


def test_the_controller_listens_on_its_own_address_with_all_three_monitor_ports() -> None:
    command = controller.command(Controller.from_environment(CONTROLLER))
    assert command[:3] == ["lmcache_controller", "--host=192.168.110.13", "--port=9000"]
    ports = next(argument for argument in command if argument.startswith("--monitor-ports="))
    assert json.loads(ports.split("=", 1)[1]) == {"pull": 8300, "reply": 8400, "heartbeat": 8600}


def test_a_server_serves_its_model_on_its_own_address_and_shares_its_cache() -> None:
    assert server.command(Server.from_environment(DECODE), "some/model") == [
        "vllm",
        "serve",
        "some/model",
        "--host=192.168.110.97",
        "--port=8011",
        "--dtype=auto",
        "--kv-cache-dtype=fp8",
        "--max-model-len=1600",
        "--middleware=kvshare_engine.requests.KvTransferParams",
        "--middleware=kvshare_engine.beside_v1.Keyed",
        "--gpu-memory-utilization",
        "0.9",
        "--chat-template",
        "/models/a chat.jinja",
        "--revision=v1",
        '--kv-transfer-config={"kv_connector": "LMCacheConnectorV1"}',
    ]


@pytest.mark.parametrize(
    "option",
    [
        '--speculative-config \'{"method": "eagle"}\'',
        '-sc=\'{"model": "small"}\'',
        "--spec-model small",
        "--spec-method eagle",
    ],
)
def test_a_draft_model_is_refused_before_anything_is_loaded(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**DECODE, "KVSHARE_VLLM_ARGS": f"--enforce-eager {option}"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        server.run()
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "expected no draft model and found" in said
    assert "for speculative decoding" in said


@pytest.mark.parametrize(
    "option", ["", '--speculative-config \'{"method": "ngram"}\'', "--spec-method ngram"]
)
def test_drafts_that_need_no_model_are_served(option: str) -> None:
    assert refusal_of_drafts(f"--enforce-eager {option}") == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--port 80", "VLLM_ARGS has --port, which is kvshare's own to set: set KVSHARE_API_PORT"),
        ("--tensor_parallel_size=2", "list as many GPUs in PREFILL_GPU and DECODE_GPU"),
        ("--enforce-eager -tp 2", "VLLM_ARGS has -tp,"),
        ("--tensor-par 2", "VLLM_ARGS has --tensor-par,"),
        ("--kv-transfer-config.kv_role=kv_producer", "set KVSHARE_KV_TRANSFER_CONFIG"),
        ("--chat-template 'a", "cannot be read as a shell would (No closing quotation)"),
    ],
)
def test_an_option_that_is_kvshares_own_is_refused_by_plain_compose_too(
    options: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**DECODE, "KVSHARE_USER_VLLM_ARGS": options}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        server.run()
    assert exit_.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        "--enable-auto-tool-choice --tool-call-parser hermes --chat-template /models/chat.jinja",
        "--enable-lora --lora-modules a=/models/a b=/models/b --max-lora-rank 8",
        "--quantization awq --gpu-memory-utilization 0.45 --max-num-seqs 8 --model-impl transformers",
        "--served-model-name chat --hf-overrides '{\"model\": 1}' --hf-config-path /models/x",
    ],
)
def test_every_other_option_is_vllms(options: str) -> None:
    assert refusal_of(options) == ""


def test_a_server_of_two_gpus_is_tensor_parallel_and_gives_each_rank_its_ports() -> None:
    two = Server.from_environment({**DECODE, "KVSHARE_GPUS": "2,3"})
    assert "--tensor-parallel-size=2" in server.command(two, "some/model")
    told = server.lmcache_environment(two, Controller.from_environment(CONTROLLER))
    assert told["LMCACHE_LMCACHE_WORKER_PORTS"] == "8501,8511"
    assert told["LMCACHE_P2P_INIT_PORTS"] == "8202,8212"
    assert told["LMCACHE_P2P_LOOKUP_PORTS"] == "8203,8213"


def test_only_one_rank_without_a_gpu_computes_in_the_engines_process() -> None:
    def executor(**facts: str) -> list[str]:
        return server.executor(Server.from_environment({**DECODE, **facts}))

    assert executor() == []
    assert executor(KVSHARE_DEVICE="cpu") == [f"--distributed-executor-backend={server.ONE_PROCESS}"]
    assert executor(KVSHARE_DEVICE="cpu", KVSHARE_CPU_RANKS="2") == ["--tensor-parallel-size=2"]


def test_a_server_without_a_transfer_config_shares_nothing() -> None:
    alone = Server.from_environment({**DECODE, "KVSHARE_KV_TRANSFER_CONFIG": ""})
    assert not any("kv-transfer" in argument for argument in server.command(alone, "some/model"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("1600", "1600"),
        ("32k", "32000"),
        ("32K", "32768"),
        ("1.5k", "1500"),
        ("auto", "auto"),
        ("-1", "auto"),
    ],
)
def test_the_longest_prompt_is_said_in_each_of_vllms_ways(given: str, told: str) -> None:
    of = Server.from_environment({**DECODE, "KVSHARE_MAX_MODEL_LEN": given})
    assert f"--max-model-len={told}" in server.command(of, "some/model")


def test_lmcache_is_told_what_differs_from_node_to_node() -> None:
    environment = server.lmcache_environment(
        Server.from_environment(DECODE), Controller.from_environment(CONTROLLER)
    )
    assert environment == {
        "LMCACHE_CONFIG_FILE": "/etc/kvshare/lmcache.yaml",
        "LMCACHE_LMCACHE_INSTANCE_ID": "lmcache_instance_2",
        "LMCACHE_LMCACHE_WORKER_PORTS": "8501",
        "LMCACHE_P2P_HOST": "192.168.110.97",
        "LMCACHE_P2P_INIT_PORTS": "8202",
        "LMCACHE_P2P_LOOKUP_PORTS": "8203",
        "LMCACHE_CONTROLLER_PULL_URL": "192.168.110.13:8300",
        "LMCACHE_CONTROLLER_REPLY_URL": "192.168.110.13:8400",
    }


def test_nixl_counts_for_all_ranks_at_one_port_and_afresh_at_each_start() -> None:
    assert transport.nixl_environment(
        Server.from_environment({**DECODE, "KVSHARE_GPUS": "2,3"}).nixl_port
    ) == {
        "NIXL_TELEMETRY_MULTIPROC_DIR": "/tmp/kvshare/nixl",
        "NIXL_TELEMETRY_PROMETHEUS_PORT": "8205",
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"KVSHARE_HOST": ""}, "expected KVSHARE_HOST in the environment"),
        ({"KVSHARE_API_PORT": "80a"}, "expected a port from 1 to 65535 in KVSHARE_API_PORT and found '80a'"),
        ({"KVSHARE_API_PORT": "70000"}, "expected a port from 1 to 65535"),
        ({"KVSHARE_GPUS": "0,0"}, "'0,0' is no list of GPUs, each named once, such as 0,1; correct .env"),
        ({"KVSHARE_DEVICE": "cpu", "KVSHARE_CPU_RANKS": "no"}, "CPU_RANKS=no is no number of ranks"),
        ({"KVSHARE_HOST": "::1"}, "KVSHARE_HOST has ::1, and kvshare speaks IPv4 alone"),
        (
            {"KVSHARE_MODEL": "/models/a@2"},
            "MODEL=/models/a@2 has an @, at which LMCache takes its keys apart",
        ),
        ({"KVSHARE_MAX_MODEL_LEN": "long"}, "MAX_MODEL_LEN=long is no length: set it to tokens"),
    ],
)
def test_a_missing_or_wrong_fact_ends_the_container_with_a_sentence(
    change: dict[str, str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        Server.from_environment({**DECODE, **change})
    assert exit_.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_model_path_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        models.require(str(tmp_path / "absent"), "", "cpu")
    assert "found no config.json there; set MODEL" in capsys.readouterr().err


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models, "VOLUME", tmp_path)
    monkeypatch.setattr(hub, "ask", lambda *_: (Hub("https://hub", False, 200), {}))
    return tmp_path


@pytest.mark.usefixtures("volume")
def test_a_name_is_the_hubs_to_know() -> None:
    assert models.require("some/model", "", "cpu") == "some/model"


@pytest.mark.usefixtures("volume")
@pytest.mark.parametrize("name", ["demo", "some/model"])
def test_a_models_volume_that_may_not_be_written_is_said_before_it_is_tried(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "may_write", lambda *_: False)
    with pytest.raises(SystemExit) as exit_:
        models.require(name, "", "cpu")
    assert exit_.value.code == 2
    assert f"expected to put {name} into the models volume, which user" in capsys.readouterr().err


def test_a_model_that_is_there_needs_no_room(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "may_write", lambda *_: False)
    (volume / "config.json").write_text("{}")
    assert models.require(str(volume), "", "cpu") == str(volume)


@pytest.mark.usefixtures("volume")
def test_a_model_of_the_hubs_is_refused_before_it_is_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "ask", lambda *_: (Hub("https://hub", False, 200), {"is_encoder_decoder": True}))
    with pytest.raises(SystemExit):
        models.require("some/model", "", "cpu")
    assert "found some/model: it is an encoder-decoder" in capsys.readouterr().err


@pytest.fixture
def no_hub(volume: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models volume, where the hub cannot be reached."""
    monkeypatch.setattr(hub, "ask", lambda *_: (Hub("https://hub", False, error="no route to host"), {}))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return volume


def test_what_was_fetched_is_served_without_the_hub(no_hub: Path) -> None:
    fetched = no_hub / folder_of("some/model") / "snapshots/abc"
    fetched.mkdir(parents=True)
    (fetched / "config.json").write_text("{}")
    assert models.require("some/model", "", "cpu") == "some/model"
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.usefixtures("no_hub")
def test_a_hub_that_cannot_be_reached_is_named_where_nothing_was_fetched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        models.require("some/model", "", "cpu")
    assert "https://hub cannot be reached (no route to host)" in capsys.readouterr().err


def test_a_model_that_shares_no_kv_is_refused_before_its_weights_load(
    volume: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (volume / "config.json").write_text(json.dumps({"kv_lora_rank": 512}))
    assert models.require(str(volume), "", "cuda") == str(volume)
    with pytest.raises(SystemExit) as exit_:
        models.require(str(volume), "", "cpu")
    assert exit_.value.code == 2
    assert f"found {volume}: it keeps KV compressed" in capsys.readouterr().err


def test_the_transfer_device_is_the_one_that_holds_the_nodes_address(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert transport.device_of("127.0.0.1") == transport.device_of("127.0.0.2") == "lo"
    with pytest.raises(SystemExit):
        transport.device_of("203.0.113.7")
    assert (
        "expected 203.0.113.7 to be an address of this machine and found 127.0.0.1" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "device", "tls"),
    [("tcp", "cpu", "tcp"), ("tcp", "cuda", "tcp,cuda_copy")],
)
def test_ucx_is_told_what_follows_from_transport_and_device(name: str, device: str, tls: str) -> None:
    found = transport.environment(name, device, "127.0.0.1", given={})
    assert (found["UCX_TLS"], found["UCX_NET_DEVICES"]) == (tls, "lo")


def test_a_bridge_is_used_where_it_holds_the_nodes_address(tmp_path: Path) -> None:
    (tmp_path / "vmbr0/bridge").mkdir(parents=True)
    (tmp_path / "eth0").mkdir()
    assert transport.of_bridges("vmbr0", tmp_path) == {"UCX_TCP_BRIDGE_ENABLE": "y"}
    assert transport.of_bridges("eth0,vmbr0", tmp_path) == {"UCX_TCP_BRIDGE_ENABLE": "y"}
    assert transport.of_bridges("eth0", tmp_path) == transport.of_bridges("", tmp_path) == {}


def test_what_ucx_was_given_stands() -> None:
    given = {"UCX_TLS": "rc", "UCX_NET_DEVICES": "mlx5_1:1", "KVSHARE_LANES": "2"}
    assert transport.environment("rdma", "cuda", "127.0.0.1", given=given) == given


@pytest.mark.parametrize(
    ("name", "cores", "lanes"), [("tcp", 1, 1), ("tcp", 2, 1), ("tcp", 8, 4), ("tcp", 64, 8), ("rdma", 64, 1)]
)
def test_a_pull_uses_half_of_the_cores_and_rdma_none(name: str, cores: int, lanes: int) -> None:
    assert transport.lanes(name, cores) == lanes


def test_ranks_share_the_lanes_of_their_node() -> None:
    alone = int(transport.environment("tcp", "cuda", "127.0.0.1", given={})["KVSHARE_LANES"])
    shared = int(transport.environment("tcp", "cuda", "127.0.0.1", 2, given={})["KVSHARE_LANES"])
    assert shared == max(1, alone // 2)


def test_the_rdma_port_behind_a_network_device_is_found(tmp_path: Path) -> None:
    (tmp_path / "ens1f1/device/infiniband/mlx5_0/ports/1").mkdir(parents=True)
    assert transport.rdma_port_of("ens1f1", tmp_path) == "mlx5_0:1"
    (tmp_path / "ens1f1/device/infiniband/mlx5_0/ports/2").mkdir()
    (tmp_path / "ens1f1/dev_port").write_text("1\n")
    assert transport.rdma_port_of("ens1f1", tmp_path) == "mlx5_0:2"


def test_rdma_without_a_card_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        transport.environment("rdma", "cpu", "127.0.0.1", given={})
    assert "expected an RDMA card behind lo and found none" in capsys.readouterr().err


def test_token_and_key_come_from_their_secrets_if_they_were_given(tmp_path: Path) -> None:
    token, key = tmp_path / "hf_token", tmp_path / "api_key"
    assert server.secrets(token, key) == {}
    assert server.secrets(Path("/dev/null"), Path("/dev/null")) == {}
    token.write_text("\n")
    assert server.secrets(token, key) == {}
    token.write_text("hf_secret\n")
    key.write_text("sk-secret\n")
    assert server.secrets(token, key) == {"HF_TOKEN": "hf_secret", "VLLM_API_KEY": "sk-secret"}


def test_the_fingerprint_has_lmcaches_settings_as_the_environment_overrides_them(tmp_path: Path) -> None:
    config = tmp_path / "lmcache.yaml"
    config.write_text("chunk_size: 256\nenable_async_loading: true\n")
    environment = {"LMCACHE_ENABLE_ASYNC_LOADING": "false", "LMCACHE_LOOKUP_TIMEOUT_MS": "500", "OTHER": "1"}
    assert fingerprint.lmcache_settings(config, environment) == {
        "chunk_size": 256,
        "enable_async_loading": False,
        "lookup_timeout_ms": 500,
    }


class FakeController:
    """Answers what the health check asks; counts a message only while its pull loop lives."""

    def __init__(
        self, pull_loop_lives: bool, workers: tuple[str, ...] = (), synced: bool | None = None, ranks: int = 1
    ) -> None:
        self.pull_loop_lives, self.workers, self.count, self.ranks = pull_loop_lives, workers, 7.0, ranks
        self.state = {} if synced is None else {"synced": synced}

    def fetch(self, url: str, _: Mapping[str, str] = health.NO_HEADERS) -> str:
        if url.endswith("/controller/workers"):
            workers = [
                {"instance_id": instance, "worker_id": rank, **self.state}
                for instance in self.workers
                for rank in range(self.ranks)
            ]
            return json.dumps({"workers": workers})
        return f'# HELP x\n{health.PULL_COUNT}{{role="controller"}} {self.count}\n'

    def send(self, _: Any) -> None:
        self.count += self.pull_loop_lives


@pytest.fixture
def controller_facts(monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr(health, "PULL_LOOP_TIMEOUT_S", 0.2)
    monkeypatch.setattr(cluster_key, "is_turned_away", lambda _: False)
    return Controller.from_environment(CONTROLLER)


def use(fake: FakeController, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "fetch", fake.fetch)
    monkeypatch.setattr(health, "send_empty_batch", fake.send)


def test_a_controller_is_healthy_while_its_pull_loop_takes_messages(
    controller_facts: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeController(pull_loop_lives=True), monkeypatch)
    health.check_controller(controller_facts)


def test_a_controller_whose_pull_loop_died_is_unhealthy_although_http_answers(
    controller_facts: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeController(pull_loop_lives=False), monkeypatch)
    with pytest.raises(health.UnhealthyError, match="pull loop on port 8300 takes no message"):
        health.check_controller(controller_facts)


def test_a_server_is_unhealthy_until_its_worker_is_registered(
    controller_facts: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Server.from_environment(DECODE)
    use(FakeController(True, workers=("lmcache_instance_1",)), monkeypatch)
    with pytest.raises(health.UnhealthyError, match="lmcache_instance_2 is not registered"):
        health.check_server(decode, controller_facts)
    use(FakeController(True, workers=("lmcache_instance_1", "lmcache_instance_2")), monkeypatch)
    health.check_server(decode, controller_facts)


def test_the_controller_alone_is_asked_with_what_follows_from_the_clusters_key(
    tmp_path: Path,
    controller_facts: Controller,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[tuple[str, Mapping[str, str]]] = []

    def fetch(url: str, headers: Mapping[str, str] = health.NO_HEADERS) -> str:
        asked.append((url, headers))
        return FakeController(True, workers=("lmcache_instance_2",)).fetch(url)

    monkeypatch.setattr(health, "fetch", fetch)
    decode, workers = Server.from_environment(DECODE), f"{controller_facts.url}/controller/workers"
    health.check_server(decode, controller_facts)
    (tmp_path / "key").write_text("5b" * 32)
    monkeypatch.setenv("KVSHARE_CLUSTER_KEY_FILE", str(tmp_path / "key"))
    health.check_server(decode, controller_facts)
    bearer = {"Authorization": f"Bearer {bearer_of('5b' * 32)}"}
    of_server: tuple[str, Mapping[str, str]] = (f"{decode.url}/health", {})
    assert asked == [of_server, (workers, {}), of_server, (workers, bearer)]
    for name, value in CONTROLLER.items():
        monkeypatch.setenv(name, value)
    assert entrypoint.main(["ask", "/controller/workers"]) == 0
    assert "lmcache_instance_2" in capsys.readouterr().out
    assert asked[-1] == (workers, bearer)


def test_a_server_that_the_controller_turns_away_says_so(
    controller_facts: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeController(True, workers=("lmcache_instance_2",)), monkeypatch)  # its predecessor's
    reply = f"{controller_facts.host}:8400"
    monkeypatch.setattr(cluster_key, "is_turned_away", lambda address: address == reply)
    with pytest.raises(health.UnhealthyError, match="has another cluster key than lmcache_instance_2"):
        health.check_server(Server.from_environment(DECODE), controller_facts)


def test_a_server_is_unhealthy_until_each_of_its_ranks_is_registered(
    controller_facts: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Server.from_environment({**DECODE, "KVSHARE_GPUS": "0,1"})
    use(FakeController(True, workers=("lmcache_instance_2",)), monkeypatch)
    with pytest.raises(health.UnhealthyError, match="rank 1 of lmcache_instance_2 is not registered"):
        health.check_server(decode, controller_facts)
    use(FakeController(True, workers=("lmcache_instance_2",), ranks=2), monkeypatch)
    health.check_server(decode, controller_facts)


def test_a_server_is_unhealthy_until_the_controller_knows_what_it_holds(
    controller_facts: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Server.from_environment(DECODE)
    use(FakeController(True, workers=("lmcache_instance_2",), synced=False), monkeypatch)
    with pytest.raises(health.UnhealthyError, match="lmcache_instance_2 is still telling the controller"):
        health.check_server(decode, controller_facts)
    use(FakeController(True, workers=("lmcache_instance_2",), synced=True), monkeypatch)
    health.check_server(decode, controller_facts)
