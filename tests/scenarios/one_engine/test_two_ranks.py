"""Servers of two ranks, as with two GPUs each: both ranks' KV is pulled, and either's corruption is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scenarios.conftest import Rig, run_beside_models
from tests.scenarios.one_engine.test_scenarios import CONNECTOR, HONEST, broken

HERE = Path(__file__).parent
TWO_RANKS = {
    "MODEL": "/models/kvshare-two-ranks",  # pragma: allowlist secret
    "CPU_RANKS": "2",
}
NOWHERE = "http://127.0.0.1:9"
# Of the values and keys that the second rank pulled, nothing is left.
CORRUPT = "layer[places] = tokens[:, number, skip:] * (torch.distributed.get_rank() == 0)"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def stack(rig: Rig, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Started by a Docker client whose proxy, of which all containers are told, leads nowhere."""
    run_beside_models(images["prefill"], HERE / "two_ranks/model.py")
    client = tmp_path_factory.mktemp("docker")
    (client / "config.json").write_text(json.dumps({"proxies": {"default": {"httpProxy": NOWHERE}}}))
    rig.use(**TWO_RANKS, DOCKER_CONFIG=str(client))
    assert f"http_proxy={NOWHERE}" in rig.docker("exec", "kvshare-decode-1", "env")
    return rig


def test_the_kv_of_both_ranks_is_pulled_and_the_answers_are_right(stack: Rig) -> None:
    outcome = stack.verify()
    assert outcome.code == 0, outcome.said
    details = {
        one["id"]: one.get("detail") for kind in outcome.report["categories"] for one in kind["checks"]
    }
    assert "lmcache_instance_1 at 127.0.0.1:8200 and 127.0.0.1:8210" in details["CTRL-04"]
    assert details["KV-PEER-03"].startswith("4 transfers of 2 ranks")  # of two prompts
    assert details["KV-PEER-07"].endswith(" bytes for 1024 tokens")
    for server in ("prefill", "decode"):
        assert stack.compose("top", server).count("VLLM::Worker_TP") == 2


def test_status_counts_the_ranks(stack: Rig) -> None:
    outcome = stack.kvshare("status", "--output", "json")
    assert outcome.code == 0, outcome.said
    assert [row["missing_ranks"] for row in json.loads(outcome.out)] == [[]] * 4  # with the gateway


def test_one_ranks_corrupted_kv_is_caught_though_every_counter_is_green(stack: Rig) -> None:
    broken(CONNECTOR, HONEST, CORRUPT)
    stack.use(HERE / "corrupted_values/overlay.yaml", **TWO_RANKS)
    outcome = stack.verify()
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "KV-RIGHT-01"
    assert not [name for name in outcome.failed_ids() if name.startswith("KV-PEER")]
