"""compose.mp.yaml over the others, as Compose resolves them: SHARING=multiprocess."""

from __future__ import annotations

import json

import pytest

from tests.config.test_rendered import (
    BESIDE,
    CLUSTER,
    SECRETS,
    TWO_MACHINES,
    VLLM_CACHE,
    assert_golden,
    render,
    services,
)

CACHES = ("prefill-cache", "decode-cache")
ADDED = ("coordinator", *CACHES)


@pytest.mark.parametrize("files", BESIDE)
@pytest.mark.parametrize("profile", ["prefill", "decode"])
def test_rendered_configuration_is_the_golden_one(files: str, profile: str, update_golden: bool) -> None:
    assert_golden(files, profile, update_golden)


@pytest.mark.parametrize("files", BESIDE)
def test_the_coordinator_is_in_the_controllers_place_and_each_node_has_a_cache_server(files: str) -> None:
    assert set(services(files, "prefill")) == {"coordinator", "prefill-cache", "prefill", "gateway"}
    assert set(services(files, "decode")) == {"decode-cache", "decode"}
    assert "controller" not in services(files)


@pytest.mark.parametrize("files", BESIDE)
@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_is_hardened_restarts_and_says_whether_it_is_healthy(files: str, name: str) -> None:
    service = services(files)[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"] == ["CMD", "python", "-m", "kvshare_engine", "health"]
    assert service["logging"]["options"] == {"max-size": "50m", "max-file": "5"}
    assert service["network_mode"] == "host"
    assert service["image"] == services(files)["prefill"]["image"]
    assert not {"privileged", "volumes", "deploy", "ulimits", "build"} & service.keys()


@pytest.mark.parametrize("files", BESIDE)
@pytest.mark.parametrize("node", ["prefill", "decode"])
def test_memory_is_shared_by_a_server_and_its_cache_server_alone(files: str, node: str) -> None:
    found = services(files)
    assert found[f"{node}-cache"]["ipc"] == "shareable"
    assert found[node]["ipc"] == f"service:{node}-cache"
    assert "shm_size" not in found[node]
    assert [name for name, service in found.items() if service.get("ipc") == "host"] == []


@pytest.mark.parametrize("files", BESIDE)
def test_the_clusters_key_is_the_only_secret_of_what_is_added(files: str) -> None:
    given = dict.fromkeys((SECRETS | CLUSTER).values(), "s3cret")
    for name in ADDED:
        (secret,) = services(files, **given)[name]["secrets"]
        assert secret == {"source": "cluster_key_given", "target": "cluster_key"}


def test_a_gpu_server_keeps_its_card_and_what_vllm_compiled() -> None:
    for name in ("prefill", "decode"):
        service = services("mp-cuda")[name]
        assert service["deploy"] == services("cuda")[name]["deploy"]
        assert service["volumes"] == services("cuda")[name]["volumes"]
        assert VLLM_CACHE in str(service["volumes"])


def test_no_two_services_listen_on_one_port() -> None:
    facts = json.loads(render("mp-cuda", "*", "--format", "json"))["x-kvshare-multiprocess"]
    apis = [services("mp-cuda")[name]["environment"]["KVSHARE_API_PORT"] for name in ("prefill", "decode")]
    gateway = services("mp-cuda")["gateway"]["environment"]["KVSHARE_GATEWAY_PORT"]
    ports = [str(v) for group in facts.values() for k, v in group.items() if k.endswith("_PORT")]
    assert len(ports) == 9
    assert len({*ports, *apis, gateway}) == 12


@pytest.mark.parametrize("files", BESIDE)
def test_a_cache_server_is_told_what_its_vllm_is_told(files: str) -> None:
    found = services(files, **TWO_MACHINES)
    for node in ("prefill", "decode"):
        mine, cache = found[node]["environment"], found[f"{node}-cache"]["environment"]
        shared = [
            name for name in cache if name in mine and name.startswith(("KVSHARE_CACHE", "UCX", "NIXL"))
        ]
        assert len(shared) >= 9
        assert all(
            mine[name] == cache[name] for name in (*shared, "KVSHARE_DEVICE", "LMCACHE_LOOKUP_TIMEOUT_MS")
        )
        assert cache["KVSHARE_ROLE"] == f"{node}-cache"
