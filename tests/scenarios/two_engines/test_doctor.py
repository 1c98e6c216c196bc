"""The doctor on two machines, before anything is up: what it says of healthy ones, and what it names."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig import engines, network
from tests.rig.network import DECODE, PREFILL, Link
from tests.scenarios.conftest import Outcome, TwoMachines

FILES = "compose.yaml:compose.cpu.yaml"
DOCKER0 = "172.17.0.1"
# A hub's model that no machine here has: its KV is known to be 128 KiB a token in bfloat16, 256 in float32.
LONG_PROMPTS = {"MODEL": "meta-llama/Meta-Llama-3.1-8B-Instruct", "MAX_MODEL_LEN": "32768"}
GIGABIT = Link(rate=1e9 / 8)

pytestmark = pytest.mark.timeout(600)


def examined(rig: TwoMachines, *arguments: str, **settings: str) -> Outcome:
    outcome = rig.run("doctor", "--output", "json", *arguments, **settings)
    assert outcome.code in (0, 1, 3), outcome.err
    assert nothing_left(), "the doctor left a container behind"
    return outcome


def nothing_left() -> bool:
    return not any(
        engines.docker(host, "ps", "--all", "--quiet", "--filter", "label=kvshare.doctor")
        for host in (PREFILL, DECODE)
        if engines.is_running(host)
    )


def check(outcome: Outcome, identifier: str) -> dict[str, Any]:
    found = (one for category in outcome.report["categories"] for one in category["checks"])
    return next(one for one in found if one["id"] == identifier)


def test_two_healthy_machines_are_ready(rig: TwoMachines) -> None:
    outcome = examined(rig)
    assert outcome.code == 0, outcome.said
    assert outcome.report["ready"] is True
    (link,) = outcome.report["links"]
    assert (link["from"], link["to"]) == ("prefill", "decode")
    assert link["bytes_per_s"] > 1e7
    assert link["meaning"]["token_bytes"] == 2 * 10 * 5 * 64 * 4, "the demo model's"
    assert outcome.report["nodes"]["decode"]["ucx"]["devices"] == "eth0"


@pytest.fixture
def docker0(rig: TwoMachines) -> Iterator[str]:
    """The bridge that every Docker host has, and the rig's engines do without."""
    del rig
    for host in (PREFILL, DECODE):
        inside = ["ip", "-n", host.namespace]
        network.run([*inside, "link", "add", "docker0", "type", "bridge"])
        network.run([*inside, "addr", "add", f"{DOCKER0}/16", "dev", "docker0"])
        network.run([*inside, "link", "set", "docker0", "up"])
    yield DOCKER0
    for host in (PREFILL, DECODE):
        network.run(["ip", "-n", host.namespace, "link", "del", "docker0"])


@pytest.mark.usefixtures("docker0")
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1", "127.0.0.1 is a loopback address"),
        (DOCKER0, f"{DOCKER0} is docker0's"),
        (DECODE.address, "decode's machine has it"),
    ],
)
def test_a_wrong_prefill_host_is_named(rig: TwoMachines, address: str, says: str) -> None:
    outcome = examined(rig, PREFILL_HOST=address)
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "DOC-HOST-02"
    found = check(outcome, "DOC-HOST-02")
    assert says in found["found"]
    assert PREFILL.address in found["found"], "and the address that would do"


@pytest.mark.parametrize(
    ("scenario", "identifier"), [("hash_seed", "DOC-CONF-01"), ("model_path", "DOC-CONF-02")]
)
def test_a_node_that_differs_is_named(rig: TwoMachines, scenario: str, identifier: str) -> None:
    files = f"{FILES}:tests/scenarios/one_engine/{scenario}/overlay.yaml"
    outcome = examined(rig, "--only", "configuration", COMPOSE_FILE=files)
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == identifier
    assert "prefill has" in check(outcome, identifier)["found"]


def test_ucx_on_docker0_is_named(rig: TwoMachines, docker0: str) -> None:
    del docker0
    outcome = examined(rig, "--only", "DOC-NET-01", UCX_NET_DEVICES="docker0")
    assert "docker0 is Docker's own bridge" in check(outcome, "DOC-NET-01")["found"]


def test_a_cut_cable_is_named(rig: TwoMachines) -> None:
    network.partition(DECODE)
    try:
        outcome = examined(rig)
    finally:
        network.heal(DECODE)
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "DOC-NET-01"
    assert "eth0 is down, or has no cable" in check(outcome, "DOC-NET-01")["found"]
    assert "no answer in 3 s" in check(outcome, "DOC-NET-02")["found"]


def test_a_blocked_way_is_named_with_each_port(rig: TwoMachines) -> None:
    route = [PREFILL.address, "table", "main"]
    network.run(["ip", "-n", DECODE.namespace, "route", "add", "blackhole", *route])
    try:
        outcome = examined(rig)
    finally:
        network.run(["ip", "-n", DECODE.namespace, "route", "del", "blackhole", *route])
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "DOC-NET-02"
    found = check(outcome, "DOC-NET-02")["found"]
    assert f"prefill to {DECODE.address}:8202 (decode P2P init): no answer in 3 s" in found
    assert check(outcome, "DOC-NET-03")["result"] == "error"
    assert check(outcome, "DOC-NET-05")["result"] == "skipped"


@pytest.fixture
def firewall(rig: TwoMachines) -> Iterator[None]:
    """Each machine's own rules, as `kvshare ports` prints them."""
    for host, node in ((PREFILL, "prefill"), (DECODE, "decode")):
        rules = rig.run("ports", "--format", "nft", "--node", node)
        assert rules.code == 0, rules.err
        subprocess.run(host.command("nft", "-f", "-"), input=rules.out, text=True, check=True)
    yield
    for host in (PREFILL, DECODE):
        network.run(host.command("nft", "flush", "ruleset"))


@pytest.mark.usefixtures("firewall")
def test_behind_the_firewall_of_kvshare_ports_all_is_well_and_the_link_is_measured(rig: TwoMachines) -> None:
    outcome = examined(rig, "--only", "network")
    assert outcome.code == 0, outcome.said
    assert check(outcome, "DOC-NET-05")["result"] == "success"


def test_a_timeout_that_the_link_does_not_allow_is_named_with_the_right_one(rig: TwoMachines) -> None:
    network.shape(DECODE, GIGABIT)
    try:
        outcome = examined(rig, "--only", "DOC-CONF-06", **LONG_PROMPTS)
    finally:
        network.unshape(DECODE)
    assert outcome.code == 1, outcome.said
    (link,) = outcome.report["links"]
    assert 0.01e9 < link["bytes_per_s"] < 0.13e9
    assert link["meaning"]["longest_s"] > 60
    advised = link["meaning"]["advised_ms"]
    assert advised > 2 * 60_000
    assert f"LOOKUP_TIMEOUT_MS={advised}" in check(outcome, "DOC-CONF-06")["expected"]


def test_an_engine_that_does_not_answer_is_named_and_the_other_machine_is_looked_at(rig: TwoMachines) -> None:
    engines.stop(DECODE)
    try:
        outcome = examined(rig)
    finally:
        engines.start(DECODE)
    assert outcome.code == 3, outcome.said
    assert f"context {engines.context_of(DECODE)}" in check(outcome, "DOC-ENG-01")["found"]
    assert check(outcome, "DOC-HOST-02")["result"] == "success"
    assert outcome.report["nodes"]["prefill"]["ucx"]["devices"] == "eth0"


def test_a_context_that_does_not_exist_is_bad_input(rig: TwoMachines) -> None:
    outcome = rig.run("doctor", DECODE_CONTEXT="kvshare-nowhere")
    assert outcome.code == 2
    assert "Docker has no context kvshare-nowhere" in outcome.err
