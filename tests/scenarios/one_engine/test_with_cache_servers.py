"""SHARING=multiprocess: cache servers beside the servers; the same proof, and the same wrong KV caught.

The last of this folder by its name: the first ones begin where nothing runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kvshare.servers import metrics
from kvshare.servers.http import Http
from kvshare.servers.multiprocess import CacheClient
from kvshare.servers.readings import Counters, EngineTimes, Reading, Sources
from kvshare.servers.server import ServerClient
from kvshare.servers.wait import poll
from tests.conftest import ROOT
from tests.scenarios.conftest import START_TIMEOUT_S, Rig, letters, run_beside_models
from tests.scenarios.keys import controllers_token
from tests.scenarios.one_engine.test_two_ranks import TWO_RANKS

HERE = Path(__file__).parent
BESIDE = ROOT / "compose.mp.yaml"
LMCACHE = "/opt/venv/lib/python3.11/site-packages/lmcache/v1"
TELLS = f"{LMCACHE}/multiprocess/modules/p2p_controller.py"
TOLD = "            for i in positions.get(key, ()):\n"
CORRUPT = "            obj.tensor.view(-1)[obj.tensor.numel() // 2 :].zero_()\n"
READS = f"{LMCACHE}/distributed/transfer_channel/impl/nixl_impl.py"
TOKENS, CHUNK = 522, 256
ADMITTED_S = 20.0
NOTHING = Reading(Sources(), EngineTimes(), Counters())  # what a server that was started anew has counted
WHOLE = "math.ceil(a.size / self._align)"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def stack(rig: Rig) -> Rig:
    """Cache servers and their coordinator in the controller's place, which is to have left its ports."""
    rig.down()
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


def test_a_cache_server_outlives_its_vllm(stack: Rig) -> None:
    """Decode is killed and started again: what it pulled before is a hit at once, and not from its peer."""
    owner, cache = (CacheClient(f"http://127.0.0.1:{port}", controllers_token()) for port in (8201, 8203))
    server, prompt = ServerClient("http://127.0.0.1:8011"), letters("outlives", TOKENS)
    stored, from_peer = owner.stored(), pulled_tokens(cache)
    ask(8010, prompt)
    assert poll(lambda: owner.stored() > stored + 1, bool, ADMITTED_S), "prefill has stored nothing"
    ask(8011, prompt)
    assert pulled_tokens(cache) == from_peer + TOKENS // CHUNK * CHUNK
    stack.docker("kill", "--signal=KILL", "kvshare-decode-1")
    stack.docker("start", "kvshare-decode-1")
    assert server.await_healthy(START_TIMEOUT_S).healthy
    from_peer = pulled_tokens(cache)
    ask(8011, prompt)
    found = server.await_counted(NOTHING, TOKENS)
    assert found is not None
    assert found.sources is not None
    assert found.sources.external_kv_transfer == TOKENS // CHUNK * CHUNK
    assert pulled_tokens(cache) == from_peer


def test_ranks_share_one_cache_server(stack: Rig, images: dict[str, str], long: bool) -> None:
    if not long:
        pytest.skip("restarts all servers: make test-long")
    run_beside_models(images["prefill"], HERE / "two_ranks/model.py")
    stack.use(BESIDE, SHARING="multiprocess", **TWO_RANKS)
    outcome = stack.verify()
    assert outcome.code == 0, outcome.said
    assert stack.compose("top", "decode").count("VLLM::Worker_TP") == 2


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


def ask(port: int, prompt: str) -> None:
    body = {"model": "/models/kvshare-demo", "prompt": prompt, "max_tokens": 2, "temperature": 0}
    Http(f"http://127.0.0.1:{port}").post("/v1/completions", body, 60)


def pulled_tokens(cache: CacheClient) -> float:
    """How many tokens of what was asked for a peer had, since the cache server's start."""
    return metrics.total(cache.samples(), "lmcache_mp_lookup_hit_l2_tokens_total") or 0.0


def broken(stack: Rig, image: str, module: str, honest: str, line: str) -> None:
    """Make what an overlay puts into a cache server: a module of the image with an honest line replaced."""
    text = stack.docker("run", "--rm", "--entrypoint", "cat", image, module)
    assert text.count(honest) == 1
    made = ROOT / ".kvshare/scenarios" / Path(module).name
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(text.replace(honest, line) + "\n")
