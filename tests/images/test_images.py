"""The images as built: small, unprivileged, labelled, and without what they do not need."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from typing import Any

import pytest

from kvshare.checking.patches import expected_patches
from tests.config.test_rendered import VLLM_CACHE
from tests.conftest import BUILD_TIMEOUT_S, CPU, ROOT, build_stage

ENVIRONMENT = {**os.environ, **CPU}
CLIENT_LIMIT = 250e6
ENGINE, CLIENT = "prefill", "client"

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_S)


def run(*command: str, timeout: float = 120) -> str:
    result = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def inspect(name: str) -> dict[str, Any]:
    (found,) = json.loads(run("docker", "image", "inspect", name))
    return dict(found)


def inside(name: str, *command: str) -> str:
    program, *arguments = command
    return run("docker", "run", "--rm", "--network", "none", "--entrypoint", program, name, *arguments)


def test_the_client_image_is_small_and_has_no_docker_sdk(images: dict[str, str]) -> None:
    assert inspect(images[CLIENT])["Size"] <= CLIENT_LIMIT
    found = inside(images[CLIENT], "python", "-c", "import importlib.util as u; print(u.find_spec('docker'))")
    assert found.strip() == "None"


@pytest.mark.parametrize("service", [ENGINE, CLIENT])
def test_nothing_runs_as_root(images: dict[str, str], service: str) -> None:
    assert inside(images[service], "id", "-u").strip() == "2000"


@pytest.mark.parametrize("service", [ENGINE, CLIENT])
def test_images_say_what_they_are(images: dict[str, str], service: str) -> None:
    labels = inspect(images[service])["Config"]["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"]
    assert labels["org.opencontainers.image.revision"] not in ("", "unknown")


@pytest.mark.parametrize(("service", "package"), [(ENGINE, "vllm"), (CLIENT, "click")])
def test_images_carry_a_bill_of_materials(images: dict[str, str], service: str, package: str) -> None:
    bill = json.loads(inside(images[service], "cat", "/opt/kvshare/sbom.cdx.json"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    urls = [component["purl"] for component in bill["components"]]
    assert any(url.startswith(f"pkg:pypi/{package}@") for url in urls)
    assert any(url.startswith("pkg:deb/debian/python3@") for url in urls)


@pytest.mark.parametrize("service", [ENGINE, CLIENT])
def test_no_build_tool_and_no_sshd_is_in_it(images: dict[str, str], service: str) -> None:
    found = inside(
        images[service], "sh", "-c", "for t in pip gcc g++ make sshd; do command -v $t || true; done"
    )
    assert found == ""


@pytest.mark.parametrize("service", [ENGINE, CLIENT])
def test_no_program_runs_as_another_user_than_its_caller(images: dict[str, str], service: str) -> None:
    command = "find / -xdev -type f -perm /6000 2>/dev/null || true"
    assert inside(images[service], "sh", "-c", command) == ""


def test_the_engine_image_knows_its_patches(images: dict[str, str]) -> None:
    patches = json.loads(inside(images[ENGINE], "cat", "/opt/kvshare/patches.json"))
    assert {patch["id"] for patch in patches} == set(expected_patches("cpu"))


def test_the_cpu_engine_allocates_with_tcmalloc(images: dict[str, str]) -> None:
    """The loader goes on without a library that it does not find."""
    assert "libtcmalloc_minimal.so" in inside(images[ENGINE], "cat", "/proc/self/maps")


def test_vllm_can_write_where_its_volumes_are_mounted(images: dict[str, str]) -> None:
    ask = "from vllm import envs; print(envs.VLLM_CACHE_ROOT)"
    assert inside(images[ENGINE], "python", "-c", ask).strip() == VLLM_CACHE
    owners = inside(images[ENGINE], "stat", "--format=%u", "/models", VLLM_CACHE).split()
    assert owners == ["2000", "2000"], "a new volume takes over its folder's owner"


def test_the_demo_model_is_the_same_wherever_it_is_made(images: dict[str, str]) -> None:
    make = (
        "import hashlib; from pathlib import Path; from kvshare_engine import demo_model\n"
        "for name in 'ab':\n"
        "    weights = demo_model.ensure(Path('/tmp') / name) / 'model.safetensors'\n"
        "    print(hashlib.sha256(weights.read_bytes()).hexdigest())"
    )
    first, second = inside(images[ENGINE], "python", "-c", make).split()
    assert first == second


def test_mistrals_own_tokenizer_can_be_read(images: dict[str, str]) -> None:
    ask = "from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as m; print(m.__name__)"
    assert inside(images[ENGINE], "python", "-c", ask).strip() == "MistralTokenizer"


def test_an_unknown_command_is_refused_with_what_there_is(images: dict[str, str]) -> None:
    result = subprocess.run(
        ["docker", "run", "--rm", "--network", "none", images[ENGINE], "--help"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "expected one of controller, server, coordinator, cache, health, ask, probe" in result.stderr


@pytest.mark.usefixtures("images")
def test_the_cuda_lock_still_holds_and_its_patches_apply() -> None:
    """What of the CUDA image can be proven without its gigabytes."""
    run("docker/locks/compile.sh", "--check", timeout=600)
    build_stage("engine-cuda-check")


def test_ucx_carries_kv_over_a_bridge_that_holds_the_nodes_address(images: dict[str, str]) -> None:
    """By itself it leaves bridges out."""
    name, address = f"kvshare-bridge-{os.getpid()}", "10.98.7.6"
    tell = f"from kvshare_engine import transport as t; print(t.environment('tcp', 'cpu', '{address}'))"
    carry = "ucx_perftest -p 18515 & sleep 1; timeout 20 ucx_perftest {} -p 18515 -t ucp_put_bw -n 3 -w 1"
    run("docker", "run", "--detach", "--rm", "--network", "none", "--name", name, "--entrypoint", "sleep",
        images[ENGINE], "300")  # fmt: skip
    try:
        pid = run("docker", "inspect", "--format", "{{.State.Pid}}", name).strip()
        for command in ("link add lan0 type bridge", f"addr add {address}/24 dev lan0", "link set lan0 up"):
            run("nsenter", "--net=/proc/" + pid + "/ns/net", "ip", *command.split())
        told: dict[str, str] = ast.literal_eval(run("docker", "exec", name, "python", "-c", tell))
        assert told["UCX_NET_DEVICES"] == "lan0"
        given = [word for pair in told.items() for word in ("--env", "=".join(pair))]
        run("docker", "exec", *given, name, "sh", "-c", carry.format(address))
    finally:
        run("docker", "rm", "--force", name)
