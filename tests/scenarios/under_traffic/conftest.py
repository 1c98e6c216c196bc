"""The pair with little memory, and the server that answers alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.conftest import WITH_ADAPTERS, make_adapters, on_this_machine
from tests.scenarios.under_traffic.oracle import STEP_TOKENS, Oracle, server_alone

HERE = Path(__file__).parent
SEED = 13
OPTIONS = f"--scheduling-policy priority --enable-prompt-tokens-details {WITH_ADAPTERS}"
# So little memory that requests are preempted and chunks evicted; long prompts are computed in pieces.
LITTLE = f"--max-num-seqs 8 --kv-cache-memory-bytes 67108864 --max-num-batched-tokens {STEP_TOKENS}"
PAIR = {"VLLM_ARGS": f"{OPTIONS} {LITTLE}", "CPU_CACHE_GIB": "0.1"}


@pytest.fixture
def minutes(request: pytest.FixtureRequest, long: bool) -> float:
    """How long requests are drawn; 0 for one case."""
    return float(request.config.getoption("--minutes")) if long else 0


@pytest.fixture(scope="package")
def oracle(images: dict[str, str]) -> Iterator[Oracle]:
    with on_this_machine() as rig:
        make_adapters(images["prefill"])
        rig.use(**PAIR)
        with server_alone(rig, OPTIONS):
            yield Oracle(rig, SEED)
