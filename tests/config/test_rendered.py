"""compose.yaml as Compose resolves it: golden files for every profile and device, and what holds in all.

Regenerate the golden files with `pytest tests/config --update-golden`, and read the difference.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvshare.servers import server, sharing
from tests.conftest import ROOT

DEVICES = {
    "cpu": "compose.yaml:compose.cpu.yaml",
    "cuda": "compose.yaml",
    "rdma": "compose.yaml:compose.rdma.yaml",
}
BESIDE = {  # SHARING=multiprocess
    "mp-cpu": "compose.yaml:compose.cpu.yaml:compose.mp.yaml",
    "mp-cuda": "compose.yaml:compose.mp.yaml",
}
FILES = {**DEVICES, **BESIDE}
PROFILES = ("controller", "prefill", "decode", "gateway", "observe", "client")
WATCHERS = ("prometheus", "canary")
GOLDEN = Path(__file__).parent / "golden"
VLLM_CACHE = "/home/kvshare/.cache/vllm"  # vLLM's own default: ~/.cache/vllm
# The original's two machines.
TWO_MACHINES = {"PREFILL_HOST": "192.168.110.13", "DECODE_HOST": "192.168.110.97"}


def render(device: str, profile: str, *arguments: str, **decisions: str) -> str:
    """`docker compose config` with nothing from this machine's .env or environment but PATH and HOME."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}
    if device == "rdma":
        environment["TRANSPORT"] = "rdma"
    if device in BESIDE:
        environment["DEVICE"] = device.removeprefix("mp-")
    result = subprocess.run(
        ["docker", "compose", "--env-file", "/dev/null", "--profile", profile, "config", *arguments],
        cwd=ROOT,
        env={**environment, "COMPOSE_FILE": FILES[device], **decisions},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "variable is not set" not in result.stderr
    return result.stdout


def services(device: str, profile: str = "*", **decisions: str) -> dict[str, Any]:
    rendered: dict[str, Any] = json.loads(render(device, profile, "--format", "json", **decisions))[
        "services"
    ]
    return rendered


def assert_golden(device: str, profile: str, update_golden: bool) -> None:
    """A profile comes out as its golden file has it."""
    rendered = yaml.safe_load(render(device, profile, **TWO_MACHINES))
    # Top-level x- keys stand in compose.yaml itself; what they come to is in the services.
    kept = {key: value for key, value in rendered.items() if not key.startswith("x-")}
    text = yaml.safe_dump(kept, sort_keys=True, width=110).replace(str(ROOT), "$ROOT")
    golden = GOLDEN / f"{device}-{profile}.yaml"
    if update_golden:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("profile", PROFILES)
def test_rendered_configuration_is_the_golden_one(device: str, profile: str, update_golden: bool) -> None:
    assert_golden(device, profile, update_golden)


@pytest.mark.parametrize("device", DEVICES)
def test_a_profile_starts_its_role_and_prefill_brings_controller_and_gateway(device: str) -> None:
    assert set(services(device, "controller")) == {"controller"}
    assert set(services(device, "prefill")) == {"controller", "prefill", "gateway"}
    assert set(services(device, "gateway")) == {"gateway"}
    assert set(services(device, "observe")) == set(WATCHERS)
    assert set(services(device, "decode")) == {"decode"}
    assert set(services(device, "client")) == {"client"}


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_mounted_from_the_operators_machine(device: str) -> None:
    mounts = [mount for service in services(device).values() for mount in service.get("volumes", [])]
    assert mounts
    assert all(mount["type"] == "volume" for mount in mounts)


def test_a_models_folder_is_mounted_only_by_its_absolute_path() -> None:
    models, _cache = services("cuda", MODELS="/srv/models")["decode"]["volumes"]
    assert (models["type"], models["source"], models["target"]) == ("bind", "/srv/models", "/models")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["controller", "prefill", "decode", "gateway", *WATCHERS, "client"])
def test_every_service_is_hardened(device: str, name: str) -> None:
    service = services(device)[name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["init"] is True
    assert not service.get("privileged")
    assert service["logging"]["options"] == {"max-size": "50m", "max-file": "5"}
    assert service["network_mode"] == "host"
    assert "ports" not in service, "ports beside host networking is a run-time error"
    assert not any("docker.sock" in str(mount) for mount in service.get("volumes", []))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["controller", "prefill", "decode"])
def test_everything_that_serves_restarts_and_says_whether_it_is_healthy(device: str, name: str) -> None:
    service = services(device)[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"] == ["CMD", "python", "-m", "kvshare_engine", "health"]
    assert "stop_grace_period" in service


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", WATCHERS)
def test_what_watches_restarts_says_whether_it_is_healthy_and_knows_every_decode_node(
    device: str, name: str
) -> None:
    service = services(device, DECODE_HOSTS="192.168.110.97,192.168.110.98", OBSERVE="7")[name]
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service
    told = service["environment"]
    assert told["KVSHARE_OBSERVE_DECODES"] == "192.168.110.97,192.168.110.98"
    assert told["KVSHARE_OBSERVE_EVERY_MINUTES"] == "7"


@pytest.mark.parametrize("device", DEVICES)
def test_the_gateway_restarts_says_whether_it_is_healthy_and_knows_every_decode_node(device: str) -> None:
    service = services(device, DECODE_HOSTS="192.168.110.97,192.168.110.98")["gateway"]
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service
    assert service["environment"]["KVSHARE_GATEWAY_DECODES"] == "192.168.110.97,192.168.110.98"
    alone = services(device, DECODE_HOST="192.168.110.97")["gateway"]
    assert alone["environment"]["KVSHARE_GATEWAY_DECODES"] == "192.168.110.97"


def test_servers_are_pinned_to_their_own_gpus() -> None:
    found = services("cuda", PREFILL_GPU="GPU-aaaa", DECODE_GPU="2,3")
    for name, gpu in {"prefill": "GPU-aaaa", "decode": "2,3"}.items():
        assert found[name]["environment"]["KVSHARE_GPUS"] == gpu
        (device,) = found[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["device_ids"], device["capabilities"]) == ("nvidia", [gpu], ["gpu"])


def test_the_cpu_stack_asks_for_no_gpu() -> None:
    assert all("deploy" not in service for service in services("cpu").values())
    assert services("cpu")["decode"]["environment"]["KVSHARE_DEVICE"] == "cpu"
    assert services("cuda")["decode"]["environment"]["KVSHARE_DEVICE"] == "cuda"


def test_the_same_engine_image_is_controller_prefill_and_decode() -> None:
    for device in DEVICES:
        found = services(device)
        assert len({found[name]["image"] for name in ("controller", "prefill", "decode")}) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_no_two_services_listen_on_one_port(device: str) -> None:
    facts = yaml.safe_load((ROOT / "compose.yaml").read_text())["x-kvshare"]
    others = re.compile(r"KVSHARE_(GATEWAY|OBSERVE)_(CONTROLLER|GATEWAY|(PREFILL|DECODE)(_INIT)?)_PORT")
    ports = [
        v
        for group in facts.values()
        for k, v in group.items()
        if k.endswith("_PORT") and not others.fullmatch(k)
    ]
    assert len(ports) == 17
    assert len(set(ports)) == len(ports)
    environments = services(device)
    assert environments["decode"]["environment"]["KVSHARE_API_PORT"] == str(
        facts["decode"]["KVSHARE_API_PORT"]
    )


@pytest.mark.parametrize("device", DEVICES)
def test_servers_agree_on_all_but_their_own_place(device: str) -> None:
    found = services(device, **TWO_MACHINES)
    prefill, decode = found["prefill"]["environment"], found["decode"]["environment"]
    different = {name for name in chain(prefill, decode) if prefill.get(name) != decode.get(name)}
    assert different == {
        "KVSHARE_ROLE",
        "KVSHARE_INSTANCE",
        "KVSHARE_HOST",
        "KVSHARE_API_PORT",
        "KVSHARE_WORKER_PORT",
        "KVSHARE_P2P_INIT_PORT",
        "KVSHARE_P2P_LOOKUP_PORT",
        "KVSHARE_NIXL_PORT",
    }


def test_the_original_system_is_what_comes_out() -> None:
    found = services("cuda", **TWO_MACHINES)
    prefill, decode = found["prefill"]["environment"], found["decode"]["environment"]
    assert prefill["KVSHARE_MODEL"] == "meta-llama/Meta-Llama-3.1-8B-Instruct"
    assert prefill["KVSHARE_MAX_MODEL_LEN"] == "1600"
    assert prefill["KVSHARE_VLLM_ARGS"] == "--gpu-memory-utilization 0.9"
    assert (prefill["KVSHARE_INSTANCE"], decode["KVSHARE_INSTANCE"]) == (
        "lmcache_instance_1",
        "lmcache_instance_2",
    )
    assert (prefill["KVSHARE_HOST"], decode["KVSHARE_HOST"]) == ("192.168.110.13", "192.168.110.97")
    assert decode["KVSHARE_CONTROLLER_HOST"] == "192.168.110.13"
    assert prefill["PYTHONHASHSEED"] == decode["PYTHONHASHSEED"] == "123"
    transfer = json.loads(prefill["KVSHARE_KV_TRANSFER_CONFIG"])
    assert (transfer["kv_connector"], transfer["kv_role"]) == ("LMCacheConnectorV1", "kv_both")
    shared = yaml.safe_load((ROOT / "configs/lmcache.yaml").read_text())
    original = {
        "chunk_size": 256,
        "local_cpu": True,
        "max_local_cpu_size": 5,
        "enable_async_loading": True,
        "enable_p2p": True,
        "transfer_channel": "nixl",
        "enable_controller": True,
    }
    assert {key: shared[key] for key in original} == original


def test_a_verification_waits_for_the_servers_export() -> None:
    shared = yaml.safe_load((ROOT / "configs/lmcache.yaml").read_text())
    assert shared["extra_config"]["stats_log_interval"] < server.FLUSH_S < sharing.EXPORT_DEADLINE_S


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_a_gpu_server_has_its_card_its_memory_and_its_models(name: str) -> None:
    service = services("cuda")[name]
    assert service["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_VISIBLE_DEVICES" not in service["environment"], "device_ids alone choose the card"
    assert service["shm_size"] == str(2 * 1024**3)
    assert "ipc" not in service
    assert service["ulimits"] == {"memlock": -1}
    models, cache = service["volumes"]
    assert (models["type"], models["source"], models["target"]) == ("volume", "models", "/models")
    assert (cache["type"], cache["source"], cache["target"]) == ("volume", "cache", VLLM_CACHE)
    assert service["environment"]["HF_HOME"].startswith("/models/")


SECRETS = {"hf_token": "HF_TOKEN", "api_key": "VLLM_API_KEY"}  # pragma: allowlist secret
CLUSTER = {"cluster_key": "CLUSTER_KEY"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("secret", "variable"), (SECRETS | CLUSTER).items())
def test_a_secret_is_given_to_whom_it_is_for_and_to_nothing_else(
    device: str, secret: str, variable: str
) -> None:
    given = json.loads(render(device, "*", "--format", "json", **{variable: "s3cret"}))
    for name, service in given["services"].items():
        sources = {found["target"]: found["source"] for found in service.get("secrets", [])}
        whose = ("prefill", "decode", *(("controller",) if secret in CLUSTER else ()))
        whose += ("canary",) if secret != "hf_token" else ()  # pragma: allowlist secret
        whose += ("prometheus",) if secret in CLUSTER else ()
        expected = f"{secret}_given" if name in whose else None
        assert sources.get(secret) == expected
    assert given["secrets"][f"{secret}_given"]["environment"] == variable
    assert "s3cret" not in json.dumps(given), "neither in the environment nor on a command line"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "decisions", [{}, dict.fromkeys((SECRETS | CLUSTER).values(), "")], ids=["unset", "empty"]
)
def test_without_a_secret_its_file_is_one_that_every_machine_has(
    device: str, decisions: dict[str, str]
) -> None:
    rendered = json.loads(render(device, "*", "--format", "json", **decisions))
    for service in ("prefill", "decode"):
        for found in rendered["services"][service]["secrets"]:
            assert rendered["secrets"][found["source"]]["file"] == "/dev/null"


def test_rdma_gives_the_servers_their_card_and_the_right_to_lock_memory() -> None:
    for name, service in services("rdma").items():
        server = name in ("prefill", "decode")
        assert ("devices" in service) == server
        assert service.get("cap_add", []) == (["IPC_LOCK"] if server else [])
        if server:
            assert service["environment"]["KVSHARE_TRANSPORT"] == "rdma"
            assert service["deploy"]["resources"]["reservations"]["devices"]
