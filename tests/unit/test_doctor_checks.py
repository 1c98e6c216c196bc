"""Every check of the doctor goes red on the fault it is there for, and the first red one is the cause."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvshare.checking.registry import ERROR, SKIPPED, SUCCESS, WARNING, Result
from kvshare.contract import Hub, Model
from kvshare.doctor import checks
from kvshare.doctor.checks import REGISTRY
from kvshare.doctor.evidence import Clock, Evidence, Link, PrefillSpeed
from kvshare.doctor.judgement import Diagnosis, judge
from kvshare.site.disk import GIB
from kvshare.stack.members import Stack
from tests.unit.build import STACK
from tests.unit.doctor_build import (
    LLAMA,
    behind_gateway,
    dialled,
    healthy,
    lmcache,
    moved,
    of_engine,
    on,
    on_each,
    running,
    with_cache_servers,
    with_environment,
    with_gpus,
)
from tests.unit.doctor_faults import FAULTS, Fault

ALL = checks.select((), ())


def result(diagnosis: Diagnosis, identifier: str) -> Result:
    return next(result for result in diagnosis.results if result.check.id == identifier)


def red(diagnosis: Diagnosis) -> list[str]:
    return [r.check.id for r in diagnosis.results if r.result in (ERROR, WARNING)]


@pytest.mark.parametrize(
    "evidence",
    [healthy(), with_gpus(), running(healthy()), behind_gateway(), with_cache_servers()],
    ids=["cpu", "gpu", "running", "gateway", "cache servers"],
)
def test_healthy_machines_are_ready(evidence: Evidence) -> None:
    diagnosis = judge(evidence, ALL)
    assert red(diagnosis) == []
    assert {r.check.id for r in diagnosis.results if r.result == SKIPPED and r.needed} == set()
    assert diagnosis.exit_code == 0
    assert diagnosis.sentence.startswith("ready")


def test_with_gpus_nothing_is_left_out() -> None:
    assert {r.result for r in judge(with_gpus(), ALL).results} == {SUCCESS}


def test_a_server_that_is_not_up_is_no_fault_of_the_gateways_route() -> None:
    evidence = FAULTS["gateway-does-not-reach"].evidence
    found = result(judge(of_engine(evidence, "gpu-b", running=()), ALL), "DOC-NET-06")
    assert (found.result, found.detail) == (SUCCESS, "1 of 2 answer it")


@pytest.mark.parametrize(("name", "fault"), FAULTS.items(), ids=FAULTS)
def test_fault_is_named_by_its_check(name: str, fault: Fault) -> None:
    diagnosis = judge(fault.evidence, ALL)
    assert red(diagnosis)[:1] == [fault.cause], f"{name} goes unseen"
    assert fault.says in result(diagnosis, fault.cause).found
    assert diagnosis.exit_code == fault.exit_code
    assert (diagnosis.cause is None) == (fault.exit_code == 0)


# --- one machine that cannot be looked at -------------------------------------------------------------------


def test_an_engine_that_does_not_answer_leaves_the_other_machines_checks() -> None:
    diagnosis = judge(FAULTS["engine-unreachable"].evidence, ALL)
    assert diagnosis.exit_code == 3
    assert "context gpu-b" in diagnosis.sentence
    for identifier in ("DOC-HOST-01", "DOC-HOST-02", "DOC-HOST-04", "DOC-HOST-06", "DOC-NET-02"):
        assert result(diagnosis, identifier).result == SUCCESS, identifier
    assert "decode not seen" in result(diagnosis, "DOC-HOST-04").detail
    assert "only default could be asked" in result(diagnosis, "DOC-IMG-02").detail


def test_no_engine_at_all_is_no_traceback() -> None:
    evidence = healthy()
    for engine in evidence.engines:
        evidence = of_engine(evidence, engine.context, error="no answer", image=None, clock=None)
    nodes = tuple(replace(node, facts=None, error="no answer") for node in evidence.nodes)
    diagnosis = judge(replace(evidence, nodes=nodes, dialed=(), links=()), ALL)
    assert diagnosis.exit_code == 3
    assert red(diagnosis) == ["DOC-ENG-01"]


# --- what does not apply ------------------------------------------------------------------------------------


@pytest.mark.parametrize("identifier", ["DOC-GPU-01", "DOC-GPU-02", "DOC-GPU-03", "DOC-HOST-05"])
def test_what_a_cpu_does_not_need_is_said_and_costs_no_exit_code(identifier: str) -> None:
    diagnosis = judge(healthy(), ALL)
    assert result(diagnosis, identifier).detail.startswith("not needed: ")
    assert diagnosis.exit_code == 0


def test_rdma_locks_memory_on_a_cpu_too() -> None:
    evidence = with_environment(healthy(), "decode", KVSHARE_TRANSPORT="rdma")
    assert result(judge(evidence, ALL), "DOC-HOST-05").result == ERROR


def on_one_machine() -> Evidence:
    """Everything on one context and loopback, as the demo has it."""
    prefill, controller = (replace(m, host="127.0.0.1") for m in (STACK.prefill, STACK.controller))
    decode = replace(STACK.decode, host="127.0.0.1", context="default")
    stack = Stack("kvshare", "cpu", controller, prefill, (decode,))  # type: ignore[arg-type]
    evidence = on_each(healthy(), ucx=replace(healthy().seen["decode"].ucx, devices="lo"))
    nodes = tuple(replace(node, host="127.0.0.1", context="default") for node in evidence.nodes)
    return replace(evidence, stack=stack, engines=evidence.engines[:1], nodes=nodes)


def test_loopback_will_do_where_there_is_one_machine() -> None:
    diagnosis = judge(on_one_machine(), ALL)
    assert red(diagnosis) == []
    assert result(diagnosis, "DOC-IMG-02").detail == "not needed: one machine"
    assert result(diagnosis, "DOC-CONF-01").detail == "123", "prefill and decode are compared all the same"


def test_members_of_one_machine_share_its_memory() -> None:
    evidence = on_each(on_one_machine(), memory_available=6 * 1024**3)
    assert "6.5 GiB needed" in result(judge(evidence, ALL), "DOC-HOST-04").found


def test_each_rank_of_a_server_needs_memory() -> None:
    evidence = healthy()
    one = replace(evidence.stack.prefill, worker_ports=(8500, 8510))
    evidence = on_each(replace(evidence, stack=replace(evidence.stack, prefill=one)), memory_available=GIB)
    assert "9.5 GiB needed" in result(judge(evidence, ALL), "DOC-HOST-04").found


# --- details ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "172.17.0.1", "192.168.110.97", "10.9.9.9"])
def test_a_wrong_host_comes_with_the_addresses_that_would_do(host: str) -> None:
    found = result(judge(moved(healthy(), "prefill", host), ALL), "DOC-HOST-02")
    assert "machine-a has 192.168.110.13" in found.found
    assert found.next == "set PREFILL_HOST in .env"
    assert f"prefill on {host} (context default)" in found.where


def test_a_running_stacks_own_ports_are_no_obstacle() -> None:
    assert result(judge(running(healthy()), ALL), "DOC-HOST-06").detail == "3 of 3 members run already"


def test_clocks_that_may_agree_are_not_blamed() -> None:
    evidence = of_engine(healthy(), "gpu-b", clock=Clock(1.4, 0.6))
    assert result(judge(evidence, ALL), "DOC-HOST-03").result == SUCCESS


def test_a_hub_that_cannot_be_asked_is_not_taken_for_a_good_one() -> None:
    hub = Hub("https://huggingface.co", True, error="Name or service not known")
    diagnosis = judge(on(with_gpus(), "decode", model=Model(LLAMA, False), hub=hub), ALL)
    assert "not checked" in result(diagnosis, "DOC-HOST-07").detail
    assert diagnosis.exit_code == 3


@pytest.mark.parametrize("status", [200, 307])
def test_a_hub_that_gives_the_model_is_enough(status: int) -> None:
    evidence = on(with_gpus(), "decode", model=Model(LLAMA, False), hub=Hub("https://hub", True, status))
    assert "decode will download" in result(judge(evidence, ALL), "DOC-HOST-07").detail


@pytest.mark.parametrize("pinned", ["1", "GPU-77aa"])
def test_a_gpu_is_pinned_by_index_or_uuid(pinned: str) -> None:
    evidence = replace(with_gpus(), nodes=tuple(replace(n, pinned_gpus=pinned) for n in with_gpus().nodes))
    assert "decode 1, NVIDIA H200" in result(judge(evidence, ALL), "DOC-GPU-03").detail


def test_three_nodes_are_compared_pair_by_pair() -> None:
    evidence = healthy()
    decodes = tuple(replace(STACK.decode, name=f"decode-{n}", context=f"gpu-{n}") for n in (1, 2))
    seeds = {"controller": "1", "prefill": "1", "decode-1": "1", "decode-2": "2"}
    evidence = replace(
        evidence,
        stack=replace(STACK, decodes=decodes),
        environments={name: {"PYTHONHASHSEED": seed} for name, seed in seeds.items()},
    )
    (found,) = judge(evidence, {"DOC-CONF-01"}).results
    assert found.found == (
        "controller has 1 and decode-2 2; prefill has 1 and decode-2 2; decode-1 has 1 and decode-2 2"
    )


def test_the_timeout_is_said_with_what_it_is_derived_from() -> None:
    found = result(judge(FAULTS["timeout-too-small"].evidence, ALL), "DOC-CONF-06")
    assert "32768 tokens (MAX_MODEL_LEN) of 128 KiB take 52.61 s from prefill to decode" in found.found
    assert found.expected == "LOOKUP_TIMEOUT_MS=105500 or more"
    assert "make doctor ARGS=--write" in found.next


def calibrated(minimum: object) -> Evidence:
    evidence = lmcache(with_gpus(), "prefill", p2p_min_tokens=minimum)
    return lmcache(evidence, "decode", p2p_min_tokens=minimum)


def test_what_was_calibrated_goes_before_what_is_to_be_expected() -> None:
    assert "from 1280 tokens on, against prefill" in result(judge(with_gpus(), ALL), "DOC-CONF-07").detail
    found = result(judge(calibrated(1024), ALL), "DOC-CONF-07")
    assert found.detail == "to decode from 1024 tokens on, as P2P_MIN_TOKENS=1024 says"
    found = result(judge(calibrated("never"), ALL), "DOC-CONF-07")
    assert (found.result, found.found) == (WARNING, "to decode never, as P2P_MIN_TOKENS=never says")


def test_the_slowest_of_several_links_decides() -> None:
    evidence = healthy()
    decodes = tuple(replace(STACK.decode, name=f"decode-{n}") for n in (1, 2))
    nodes = (evidence.nodes[0], *(replace(evidence.nodes[1], name=d.name) for d in decodes))
    links = (Link("prefill", "decode-1", 1e9, 1e-5), Link("prefill", "decode-2", 1e6, 1e-5))
    evidence = replace(evidence, stack=replace(STACK, decodes=decodes), nodes=nodes, links=links)
    found = result(judge(evidence, ALL), "DOC-CONF-06")
    assert "from prefill to decode-2" in found.found
    assert "decode-1" not in found.where


def test_a_length_that_nothing_is_known_of_leaves_the_timeout_unjudged() -> None:
    diagnosis = judge(on_each(healthy(), max_model_len=None), ALL)
    assert result(diagnosis, "DOC-CONF-06").result == "skipped"
    assert result(diagnosis, "DOC-CONF-09").result == "success"


def test_a_model_that_nothing_is_known_of_leaves_the_timeout_unjudged() -> None:
    evidence = on(with_gpus(), "decode", model=Model("some/model", False), hub=Hub("h", True, 200))
    diagnosis = judge(evidence, ALL)
    assert result(diagnosis, "DOC-CONF-06").result == SKIPPED
    assert diagnosis.exit_code == 3


def test_prefill_speed_is_said_with_where_it_comes_from() -> None:
    evidence = replace(with_gpus(), prefill_speed=PrefillSpeed(5000, "as given"))
    assert "5000 tokens/s (as given)" in result(judge(evidence, ALL), "DOC-CONF-07").detail


def test_a_warning_changes_no_exit_code() -> None:
    assert judge(FAULTS["port-everywhere"].evidence, ALL).exit_code == 0


def test_a_refusal_at_a_closed_port_is_as_it_should_be() -> None:
    evidence = dialled(healthy(), "timed out", source="the operator's machine")
    assert result(judge(evidence, ALL), "DOC-NET-04").result == SUCCESS


# --- selecting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ((), True),
        (("network",), True),
        (("DOC-CONF-06",), True),
        (("engines", "hosts"), False),
        (("DOC-CONF-01",), False),
    ],
)
def test_connections_are_made_only_if_a_check_needs_them(only: tuple[str, ...], expected: bool) -> None:
    assert checks.needs_network(checks.select(only, ())) is expected


def test_part_of_the_checks_says_so() -> None:
    diagnosis = judge(healthy(), checks.select(("engines",), ()))
    assert diagnosis.sentence == f"nothing failed in 5 of {len(REGISTRY)} checks"
