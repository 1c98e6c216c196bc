"""The stack from what Compose resolves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.site import compose
from kvshare.stack import members as stack

CUDA = Settings(Path("/nowhere"), {"DEVICE": "cuda", "DECODE_CONTEXT": "gpu-b"})
SETTINGS = Settings(Path("/nowhere"), {"DEVICE": "cpu", "DECODE_CONTEXT": "gpu-b"})


@pytest.fixture
def config(root: Path) -> dict[str, Any]:
    """compose.yaml itself, as far as the tool reads it, with Compose's `${NAME:-default}` filled in."""
    text = (root / "compose.yaml").read_text()
    for host in ("PREFILL_HOST", "DECODE_HOST"):
        text = text.replace(f"${{{host}:-127.0.0.1}}", f"{host.lower()}.example")
    for name, default in {"DECODE_INSTANCE": 2, "PREFILL_GPU": 0, "DECODE_GPU": 0, "CPU_RANKS": 1}.items():
        text = text.replace(f"${{{name}:-{default}}}", str(default))
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_facts_come_from_x_kvshare(config: dict[str, Any]) -> None:
    found = stack.parse_stack([config], SETTINGS)
    assert found.project == "kvshare"
    assert found.controller.url == "http://prefill_host.example:9000"
    assert (found.controller.pull_port, found.controller.reply_port) == (8300, 8400)
    assert found.prefill.url == "http://prefill_host.example:8010"
    assert found.decode.peer_init_urls == ("decode_host.example:8202",)
    assert (found.prefill.instance, found.decode.instance) == ("lmcache_instance_1", "lmcache_instance_2")


def test_contexts_come_from_the_settings_and_controller_and_gateway_live_beside_prefill(
    config: dict[str, Any],
) -> None:
    found = stack.parse_stack([config], SETTINGS)
    assert [member.context for member in found.members] == ["default", "default", "gpu-b", "default"]
    assert found.gateway is not None
    assert found.gateway.url == "http://prefill_host.example:8000"
    assert found.contexts == ("default", "gpu-b")
    assert found.where("decode") == "decode on decode_host.example (context gpu-b)"


def test_each_rank_has_ports_of_its_own_and_the_first_those_of_a_server_with_one_gpu(
    config: dict[str, Any],
) -> None:
    one = stack.parse_stack([config], CUDA)
    config["x-kvshare"]["prefill"]["KVSHARE_GPUS"] = "0,1"
    config["x-kvshare"]["decode"]["KVSHARE_GPUS"] = "GPU-a, GPU-b"
    two = stack.parse_stack([config], CUDA)
    assert (one.prefill.ranks, two.prefill.ranks, two.decode.ranks) == (1, 2, 2)
    assert one.decode.ports == (8011, 8501, 8202, 8203, 8205)
    assert two.decode.ports == (8011, 8501, 8511, 8202, 8212, 8203, 8213, 8205)
    assert two.prefill.peer_init_urls == ("prefill_host.example:8200", "prefill_host.example:8210")
    ports = [port for member in two.members for port in member.ports]
    assert len(set(ports)) == len(ports)


def test_eight_ranks_on_one_machine_keep_out_of_each_others_and_the_controllers_ports(
    config: dict[str, Any],
) -> None:
    config["x-kvshare"]["server"]["KVSHARE_CPU_RANKS"] = "8"
    found = stack.parse_stack([config], Settings(Path("/nowhere"), {"DEVICE": "cpu"}))
    assert found.decode.ranks == 8
    first, last = found.decode.data_ports
    assert not {port for member in found.members for port in member.ports} & set(range(first, last + 1))


def test_servers_of_other_numbers_of_gpus_are_refused(config: dict[str, Any]) -> None:
    config["x-kvshare"]["prefill"]["KVSHARE_GPUS"] = "0,1"
    with pytest.raises(KvshareError, match="prefill computes on 2 GPUs and decode on 1"):
        stack.parse_stack([config], CUDA)


def test_a_gpu_that_is_listed_twice_is_refused(config: dict[str, Any]) -> None:
    config["x-kvshare"]["decode"]["KVSHARE_GPUS"] = "0,0"
    with pytest.raises(KvshareError, match="decode: '0,0' is no list of GPUs, each named once"):
        stack.parse_stack([config], CUDA)


def test_missing_fact_is_named(config: dict[str, Any]) -> None:
    del config["x-kvshare"]["decode"]["KVSHARE_API_PORT"]
    with pytest.raises(KvshareError, match="no 'KVSHARE_API_PORT' where x-kvshare"):
        stack.parse_stack([config], SETTINGS)


def test_members_of_one_context_that_want_one_port_are_refused(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config["x-kvshare"]["decode"]["KVSHARE_API_PORT"] = 8010
    monkeypatch.setattr(subprocess, "run", Answer(out=json.dumps(config)))
    together = Settings(Path("/nowhere"), {"DEVICE": "cpu"})
    with pytest.raises(KvshareError, match="prefill and decode both want port 8010 on context default"):
        compose.read_stack(together)
    assert compose.read_stack(SETTINGS).decode.api_port == 8010, "two machines may use the same port"


def test_a_pair_is_the_stack_with_one_decode_node(config: dict[str, Any]) -> None:
    values = {"DEVICE": "cpu", "DECODE_HOSTS": "a,b", "DECODE_CONTEXTS": "gpu-b,gpu-c"}
    found = stack.parse_stack([config, config], Settings(Path("/nowhere"), values))
    assert [member.name for member in found.members] == [
        "controller",
        "prefill",
        "decode-1",
        "decode-2",
        "gateway",
    ]
    assert [pair.decode.name for pair in found.pairs()] == ["decode-1", "decode-2"]
    assert [len(pair.members) for pair in found.pairs()] == [4, 4]


def test_every_compose_command_names_its_context() -> None:
    assert compose.command("gpu-b", "ps")[:4] == ["docker", "--context", "gpu-b", "compose"]


class Answer:
    """Stands for subprocess.run: returns a result, or raises."""

    def __init__(self, code: int = 0, out: str = "", err: str = "", error: Exception | None = None) -> None:
        self.result, self.error = subprocess.CompletedProcess([], code, out, err), error
        self.calls: list[tuple[list[str], dict[str, Any]]] = []

    def __call__(self, command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append((command, more))
        if self.error:
            raise self.error
        return self.result


def test_compose_is_asked_with_all_profiles_in_the_root(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Answer(out=json.dumps(config))
    monkeypatch.setattr(subprocess, "run", answer)
    assert compose.read_stack(SETTINGS).project == "kvshare"
    command, more = answer.calls[0]
    assert command[-5:] == ["--profile", "*", "config", "--format", "json"]
    assert more["cwd"] == SETTINGS.root
    assert more["env"]["DECODE_CONTEXT"] == "gpu-b"


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (Answer(error=FileNotFoundError()), CouldNotCheckError, "docker is not installed"),
        (Answer(error=subprocess.TimeoutExpired("docker", 60)), CouldNotCheckError, "did not end in 60 s"),
        (
            Answer(code=15, err="a warning\nservices.x: bad"),
            KvshareError,
            r"refuses the settings: services\.x: bad",
        ),
        (Answer(code=15), KvshareError, "no reason given"),
    ],
)
def test_compose_that_does_not_answer_ends_in_a_sentence(
    answer: Answer, kind: type[KvshareError], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", answer)
    with pytest.raises(kind, match=sentence) as refusal:
        compose.read_stack(SETTINGS)
    assert refusal.value.exit_code == (3 if kind is CouldNotCheckError else 2)
