"""SHARING=multiprocess: what is decided, what runs where, on which ports, and how it is started and asked."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from kvshare.config.settings import Settings, load_settings
from kvshare.errors import KvshareError
from kvshare.operate import status
from kvshare.servers.multiprocess import PAGE_BYTES
from kvshare.site import native
from kvshare.site.containers import Containers
from kvshare.stack.members import Stack, bound_to, members_of, parse_stack
from kvshare.stack.ports import registry
from tests.conftest import ROOT
from tests.unit.fake_docker import FakeDocker
from tests.unit.test_engine_package import DECODE

from kvshare_engine import cache, coordinator, health, server  # isort: skip
from kvshare_engine.environment import Cache, Coordinator, Server  # isort: skip

PLACE = {"KVSHARE_COORDINATOR_HOST": "192.168.110.13", "KVSHARE_COORDINATOR_PORT": "9000"}
BESIDE = {
    **DECODE,
    "KVSHARE_SHARING": "multiprocess",
    "KVSHARE_CACHE_HOST": "192.168.110.97",
    "KVSHARE_CACHE_PORT": "8501",
    "KVSHARE_CACHE_HTTP_PORT": "8203",
    "KVSHARE_CACHE_P2P_PORT": "8202",
    "KVSHARE_CACHE_NIXL_PORT": "8205",
    "KVSHARE_CPU_CACHE_GIB": "0.5",
}
CPU = {**BESIDE, "KVSHARE_DEVICE": "cpu"}
CACHE = {name: value for name, value in BESIDE.items() if name.startswith("KVSHARE_CACHE")}
STATUS = {
    "is_healthy": True,
    "p2p_state": "registered",
    "storage_manager": {"l1_managers": {"_default": {"total_object_count": 12}}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".env.example").write_text((ROOT / ".env.example").read_text())
    return tmp_path


@pytest.fixture
def stack() -> Stack:
    facts = {
        "coordinator": PLACE,
        "prefill": {**DECODE, "KVSHARE_HOST": "192.168.110.13", "KVSHARE_API_PORT": "8010"},
        "decode": DECODE,
        "server": {**DECODE, "UCX_TCP_PORT_RANGE": "8700-8799"},
    }
    beside: dict[str, Mapping[str, Any]] = {
        "prefill-cache": {**CACHE, "KVSHARE_CACHE_HOST": "192.168.110.13", "KVSHARE_CACHE_PORT": "8500"},
        "decode-cache": CACHE,
    }
    config = {"name": "kvshare", "x-kvshare": facts, "x-kvshare-multiprocess": beside}
    return parse_stack([config], Settings(Path("/nowhere"), {"DEVICE": "cuda", "DECODE_CONTEXT": "gpu-b"}))


def test_the_decision_brings_its_compose_file(folder: Path) -> None:
    settings = load_settings(folder, {"SHARING": "multiprocess"})
    assert settings.compose_files == ("compose.yaml", "compose.cpu.yaml", "compose.mp.yaml")
    assert load_settings(folder, {}).sharing == "controller"


def test_the_decision_and_the_compose_files_must_agree(folder: Path) -> None:
    (folder / ".env").write_text("SHARING=multiprocess\n")
    with pytest.raises(
        KvshareError, match=r"set COMPOSE_FILE=compose\.yaml:compose\.cpu\.yaml:compose\.mp\.yaml"
    ):
        load_settings(folder, {})


@pytest.mark.parametrize(
    ("decision", "sentence"),
    [
        ({"TRANSPORT": "rdma"}, "was never tried over TRANSPORT=rdma"),
        ({"P2P_MIN_TOKENS": "1280"}, "pulls whatever a peer has: set P2P_MIN_TOKENS=0"),
        ({"KV_CHECKSUM": "on"}, "has no checksums of KV: set KV_CHECKSUM=off"),
        ({"KV_CHECKSUM": "yes"}, "is neither on nor off"),
        ({"OBSERVE": "5"}, "OBSERVE watches SHARING=controller alone"),
        ({"CLUSTER_KEY_FILE": "off"}, "hands out and clears KV for whoever reaches its ports"),
        ({"SHARING": "multiproces"}, "is no sharing, did you mean multiprocess"),
    ],
)
def test_what_only_the_other_way_does_is_refused(
    folder: Path, decision: dict[str, str], sentence: str
) -> None:
    with pytest.raises(KvshareError, match=sentence):
        load_settings(folder, {"SHARING": "multiprocess", **decision})


def test_plain_processes_have_no_cache_server() -> None:
    with pytest.raises(KvshareError, match="set SHARING=controller"):
        native.local(Settings(ROOT, {"SHARING": "multiprocess"}))


def test_a_cache_server_starts_and_stops_with_its_node_and_before_its_server(stack: Stack) -> None:
    assert [m.name for m in stack.members] == [
        "coordinator",
        "prefill-cache",
        "decode-cache",
        "prefill",
        "decode",
    ]
    assert [m.name for m in members_of(stack, "decode")] == ["decode-cache", "decode"]
    assert [m.name for m in members_of(stack, "prefill")] == ["coordinator", "prefill-cache", "prefill"]
    assert [m.context for m in members_of(stack, "decode")] == ["gpu-b", "gpu-b"]


def test_kv_is_kept_and_counted_by_the_cache_server(stack: Stack) -> None:
    assert stack.decode.cache is not None
    assert stack.decode.keeper is stack.decode.cache
    assert stack.decode.ports == (8011,)
    assert stack.decode.nixl_url == "http://127.0.0.1:8205"
    assert bound_to(stack.decode.cache, 8205) == "127.0.0.1"
    assert stack.decode.ranks == 1


def test_peers_reach_the_cache_server_and_nobody_asks_a_server_for_kv(stack: Stack) -> None:
    ports = {port.purpose: port for port in registry(stack)}
    assert ports["decode-cache requests"].callers == ports["decode-cache P2P"].callers
    assert [port.purpose for port in registry(stack) if port.node == "decode"] == ["decode API"]
    assert [p.node for p in registry(stack) if p.last > p.first] == ["prefill-cache", "decode-cache"]
    assert ports["coordinator HTTP"].authenticated == ports["decode-cache HTTP"].authenticated
    assert ports["decode-cache NIXL metrics"].callers == ()


def test_status_says_what_each_cache_server_keeps(fake_docker: FakeDocker, stack: Stack) -> None:
    for member in stack.members:
        fake_docker.add_container(member.context, member.service)
    fake_docker.answers("default", **{"/status": json.dumps(STATUS)})
    fake_docker.answers("gpu-b", **{"/status": json.dumps({**STATUS, "p2p_state": "disconnected"})})
    rows = {row.node: row for row in status.status(Containers(stack, Settings(ROOT, {})))}
    assert (rows["prefill-cache"].registered, rows["prefill-cache"].keys) == (True, 12)
    assert rows["decode-cache"].registered is False
    assert not rows["decode-cache"].is_well
    assert rows["prefill"].registered is None
    assert rows["prefill"].is_well


def test_a_cache_server_listens_at_its_own_address_and_tells_the_coordinator() -> None:
    command = cache.command(
        Cache.from_environment(BESIDE), Coordinator.from_environment(PLACE), 1.5, 256, 3.0
    )
    assert command[:2] == ["lmcache", "server"]
    for argument in (
        "--host=192.168.110.97",
        "--port=8501",
        "--http-host=192.168.110.97",
        "--p2p-advertise-url=192.168.110.97:8202",
        "--coordinator-url=http://192.168.110.13:9000",
        "--l1-size-gb=1.5",
        "--p2p-load-timeout=3",
    ):
        assert argument in command


def test_the_coordinator_listens_at_its_own_address() -> None:
    command = coordinator.command(Coordinator.from_environment(PLACE))
    assert command[:4] == ["lmcache", "coordinator", "--host=192.168.110.13", "--port=9000"]


def test_the_pool_is_as_large_as_all_ranks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "settings", lambda: {"max_local_cpu_size": 5})
    gpu = Cache.from_environment({**BESIDE, "KVSHARE_GPUS": "0,1"})
    assert cache.size_gib(gpu) == 10
    assert cache.size_gib(replace(gpu, device="cpu")) == 1


def test_the_pool_is_of_whole_objects() -> None:
    tenth = Cache.from_environment({**CPU, "KVSHARE_CPU_CACHE_GIB": "0.1"})
    assert 0.099 < cache.size_gib(tenth) <= 0.1
    assert cache.size_gib(tenth) * 2**30 % cache.ALIGN_BYTES == 0
    command = cache.command(tenth, Coordinator.from_environment(PLACE), cache.size_gib(tenth), 256, 3.0)
    (size,) = (word.partition("=")[2] for word in command if word.startswith("--l1-size-gb="))
    assert float(size) == cache.size_gib(tenth)


def test_a_server_waits_for_its_cache_server_and_ends_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        here = replace(Cache.from_environment(BESIDE), host="127.0.0.1", port=listening.getsockname()[1])
        server.await_cache(here, 5)
    with pytest.raises(SystemExit):
        server.await_cache(here, 0)
    assert f"expected a cache server at 127.0.0.1:{here.port}" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["much", "0", "-1"])
def test_a_size_that_is_none_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Cache.from_environment({**BESIDE, "KVSHARE_CPU_CACHE_GIB": wrong})
    assert f"found '{wrong}'; correct CPU_CACHE_GIB in .env" in capsys.readouterr().err


def test_vllm_is_told_where_its_cache_server_is_and_lmcache_in_it_nothing() -> None:
    beside = Server.from_environment(BESIDE)
    (told,) = (word for word in server.command(beside, "m") if word.startswith("--kv-transfer-config="))
    extra = json.loads(told.partition("=")[2])["kv_connector_extra_config"]
    assert (extra["lmcache.mp.host"], extra["lmcache.mp.port"]) == ("tcp://192.168.110.97", 8501)
    assert server.sharing(beside) == {}
    assert server.sharing(replace(beside, role="prefill")) == {"LMCACHE_MP_STORED_FIRST": "1"}
    assert extra["lmcache.mp.mp_transfer_mode"] == "engine_driven"
    assert "--disable-hybrid-kv-cache-manager" in server.command(beside, "m")
    assert "--disable-hybrid-kv-cache-manager" not in server.command(Server.from_environment(CPU), "m")
    alone = Server.from_environment({**BESIDE, "KVSHARE_KV_TRANSFER_CONFIG": ""})
    assert not any(word.startswith("--kv-transfer-config") for word in server.command(alone, "m"))


@pytest.mark.parametrize("change", [{"p2p_state": "unregistered"}, {"is_healthy": False}])
def test_a_server_is_as_healthy_as_its_cache_server(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = dict(STATUS)
    monkeypatch.setattr(health, "fetch", lambda url, *_: json.dumps(told) if url.endswith("/status") else "")
    beside, keeper = Server.from_environment(BESIDE), Coordinator.from_environment(PLACE)
    health.check_server(beside, keeper)
    told.update(change)
    with pytest.raises(health.UnhealthyError, match=r"192\.168\.110\.97:8203"):
        health.check_server(beside, keeper)


def test_a_cache_server_of_another_cluster_key_is_named_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, *_: Any) -> str:
        if url.endswith("/instances"):
            raise health.UnhealthyError from HTTPError(url, 401, "Unauthorized", Message(), None)
        return json.dumps(STATUS)

    monkeypatch.setattr(health, "fetch", fetch)
    said = r"the coordinator at http://192\.168\.110\.13:9000 has another cluster key than"
    with pytest.raises(health.UnhealthyError, match=said):
        health.check_cache(Cache.from_environment(BESIDE), Coordinator.from_environment(PLACE))


def test_a_cache_server_that_others_reach_wants_a_cluster_key(capsys: pytest.CaptureFixture[str]) -> None:
    others_reach = Cache.from_environment(BESIDE)
    assert cache.key_of(replace(others_reach, host="127.0.0.1")) == {}
    with pytest.raises(SystemExit):
        cache.key_of(others_reach)
    assert "expected a cluster key for SHARING=multiprocess on 192.168.110.97" in capsys.readouterr().err


def test_what_a_container_answers_is_asked_by_its_role(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**PLACE, **BESIDE}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("kvshare_engine.environment.os.environ", {**PLACE, **BESIDE})
    assert health.own_url("coordinator") == "http://192.168.110.13:9000"
    assert health.own_url("decode-cache") == "http://192.168.110.97:8203"


def test_an_object_fills_the_pages_that_a_verification_counts() -> None:
    assert cache.ALIGN_BYTES == PAGE_BYTES
