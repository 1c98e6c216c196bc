"""The pair with little memory, and the server that answers alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.conftest import on_this_machine
from tests.scenarios.under_traffic.oracle import Oracle, server_alone

HERE = Path(__file__).parent
SEED = 13
OPTIONS = "--scheduling-policy priority"
# So little memory that requests are preempted and chunks evicted.
LITTLE = "--max-num-seqs 8 --kv-cache-memory-bytes 67108864"
LITTLE_CACHE_GIB = "0.1"


@pytest.fixture(scope="package")
def oracle(images: dict[str, str]) -> Iterator[Oracle]:
    del images
    with on_this_machine() as rig:
        rig.use(VLLM_ARGS=f"{OPTIONS} {LITTLE}", CPU_CACHE_GIB=LITTLE_CACHE_GIB)
        with server_alone(rig, OPTIONS):
            yield Oracle(rig, SEED)
