"""SHARING=multiprocess: cache servers beside the servers; the same proof, and the same wrong KV caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.scenarios.conftest import Rig

HERE = Path(__file__).parent
BESIDE = ROOT / "compose.mp.yaml"
LMCACHE = "/opt/venv/lib/python3.11/site-packages/lmcache/v1"
TELLS = f"{LMCACHE}/multiprocess/modules/p2p_controller.py"
TOLD = "            for i in positions.get(key, ()):\n"
CORRUPT = "            obj.tensor.view(-1)[obj.tensor.numel() // 2 :].zero_()\n"
READS = f"{LMCACHE}/distributed/transfer_channel/impl/nixl_impl.py"
WHOLE = "math.ceil(a.size / self._align)"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def stack(rig: Rig) -> Rig:
    """Cache servers and their coordinator in the controller's place."""
    rig.use(BESIDE, SHARING="multiprocess")
    return rig


def test_reuse_is_proven_by_cache_servers_and_nixl(stack: Rig) -> None:
    outcome = stack.verify()
    assert outcome.code == 0, outcome.said
    details = {
        one["id"]: one.get("detail") for kind in outcome.report["categories"] for one in kind["checks"]
    }
    assert details["CACHE-02"] == "prefill: 127.0.0.1:8202; decode: 127.0.0.1:8200"
    assert details["KV-PEER-03"].endswith(" objects")
    assert details["KV-PEER-07"].endswith(" bytes for 1024 tokens")  # of two prompts
    assert details["KV-PEER-08"].endswith(" bytes from 127.0.0.1:8200")
    canary = stack.kvshare("canary")
    assert canary.code == 0, canary.said


def test_a_corrupted_chunk_is_caught_though_every_counter_is_green(
    stack: Rig, images: dict[str, str]
) -> None:
    broken(stack, images["prefill"], TELLS, TOLD, CORRUPT + TOLD)
    stack.use(BESIDE, HERE / "corrupted_cache/overlay.yaml", SHARING="multiprocess")
    outcome = stack.verify()
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "KV-RIGHT-01"
    assert not [name for name in outcome.failed_ids() if name.startswith("KV-PEER")]


def test_bytes_that_were_never_read_are_missed_though_lmcache_and_vllm_count_them(
    stack: Rig, images: dict[str, str], long: bool
) -> None:
    if not long:
        pytest.skip("one more restart of decode: make test-long")
    broken(stack, images["prefill"], READS, WHOLE, f"{WHOLE} // 2")
    stack.use(BESIDE, HERE / "half_read/overlay.yaml", SHARING="multiprocess")
    outcome = stack.verify()
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "KV-PEER-07"
    assert "KV-RIGHT-01" in outcome.failed_ids()


def broken(stack: Rig, image: str, module: str, honest: str, line: str) -> None:
    """Make what an overlay puts into a cache server: a module of the image with an honest line replaced."""
    text = stack.docker("run", "--rm", "--entrypoint", "cat", image, module)
    assert text.count(honest) == 1
    made = ROOT / ".kvshare/scenarios" / Path(module).name
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(text.replace(honest, line) + "\n")
