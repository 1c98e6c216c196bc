"""Every check goes red on the fault it is there for, and the first red one is the cause."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvshare.checking.patches import expected_patches
from kvshare.checking.registry import ERROR, SKIPPED, SUCCESS, WARNING, Result
from kvshare.errors import KvshareError
from kvshare.servers.multiprocess import PAGE_BYTES
from kvshare.verify import checks
from kvshare.verify.evidence import CHANGED, JUDGED, PEER, Evidence, Leg
from kvshare.verify.judgement import Judgement, judge
from tests.unit.build import KV_BYTES, edit, edit_legs, leg, proven, two_ranks
from tests.unit.faults import FAULTS, Fault, all_of, moved
from tests.unit.multiprocess_build import CHUNKS, OWNER, PULLED, beside

ALL = checks.select((), ())


def result(judgement: Judgement, identifier: str) -> Result:
    return next(result for result in judgement.results if result.check.id == identifier)


def test_everything_holds_in_a_proven_run() -> None:
    judgement = judge(proven(), ALL)
    assert {result.result for result in judgement.results} == {SUCCESS}
    assert judgement.proven
    assert judgement.exit_code == 0


def test_everything_holds_in_a_proven_run_of_cache_servers() -> None:
    judgement = judge(beside(), ALL)
    assert {result.check.id: result.detail for result in judgement.results if result.result != SUCCESS} == {}
    assert judgement.proven


def test_what_fills_a_page_is_no_kv() -> None:
    def read(less: int) -> str:
        total = PULLED * KV_BYTES - CHUNKS * PAGE_BYTES + less
        return result(
            judge(edit(beside(), "traffic.pulled", {OWNER: float(total)}), ALL), "KV-PEER-08"
        ).result

    assert (read(less=1), read(less=0)) == (SUCCESS, ERROR)


def test_a_check_is_not_shown_where_it_has_no_meaning() -> None:
    by_controller, by_caches = (
        {result.check.id for result in judge(evidence, ALL).results} for evidence in (proven(), beside())
    )
    assert {
        "COORD-01",
        "COORD-02",
        "CACHE-01",
        "CACHE-02",
        "PRE-05",
        "KV-PEER-08",
    } == by_caches - by_controller
    assert {"CTRL-01", "CONF-01", "PRE-03", "KV-PEER-04"} <= by_controller - by_caches
    with pytest.raises(KvshareError, match="names no check that this stack's SHARING has"):
        judge(beside(), {"CTRL-01"})


def test_everything_holds_in_a_proven_run_of_two_ranks() -> None:
    judgement = judge(two_ranks(), ALL)
    assert {result.result for result in judgement.results} == {SUCCESS}
    assert "lmcache_instance_1 at 192.168.110.13:8200 and 192.168.110.13:8210" in str(
        result(judgement, "CTRL-04").detail
    )
    assert result(judgement, "PRE-03").detail.startswith("6 chunks a prompt on each of 2 ranks")


def test_a_rank_that_shares_nothing_is_named() -> None:
    missing = result(judge(FAULTS["rank-missing"].evidence, ALL), "CTRL-04")
    assert missing.found == "rank 1 of lmcache_instance_2 missing"
    one_silent = edit(
        two_ranks(),
        "traffic.admissions",
        lambda made: tuple(replace(a, how="", new_keys=6, by_rank=(6, 0)) for a in made),
    )
    silent = result(judge(one_silent, ALL), "PRE-03")
    assert silent.found.startswith("6 (rank 0 6, rank 1 0) for prompt")


@pytest.mark.parametrize(("name", "fault"), FAULTS.items(), ids=FAULTS)
def test_fault_is_named_by_its_check(name: str, fault: Fault) -> None:
    judgement = judge(fault.evidence, all_of(fault.evidence))
    red = [r.check.id for r in judgement.results if r.result in (ERROR, WARNING)]
    if fault.exit_code == 0:
        assert judgement.cause is None
        assert red == [fault.cause]
        assert judgement.proven
    else:
        assert judgement.cause is not None, f"{name} goes unseen"
        assert judgement.cause.check.id == fault.cause
        assert not judgement.proven
    assert judgement.exit_code == fault.exit_code


def test_a_model_whose_answers_hang_on_nothing_proves_nothing() -> None:
    alike = edit_legs(proven(), CHANGED, moved(0.0096))
    judgement = judge(alike, ALL)
    detail = result(judgement, "KV-RIGHT-01").detail
    assert detail.startswith(
        "not checked: cannot tell right KV from wrong: one chunk changed moves the answer"
    )
    assert (judgement.exit_code, judgement.proven) == (3, False)


@pytest.mark.parametrize(
    "seen", [(), (replace(leg(CHANGED, JUDGED), error="503"),)], ids=["not sent", "failed"]
)
def test_without_the_changed_prompt_a_verification_cannot_tell(seen: tuple[Leg, ...]) -> None:
    kept = edit(proven(), "traffic.legs", lambda legs: (*(x for x in legs if x.leg != CHANGED), *seen))
    assert judge(kept, ALL).exit_code == 3


def test_wrong_answers_fail_however_little_they_could_move() -> None:
    evidence = edit_legs(FAULTS["corrupted-v"].evidence, CHANGED, moved(0.0))
    assert judge(evidence, ALL).exit_code == 1


def test_a_stack_without_a_gateway_is_proven_without_its_checks() -> None:
    evidence = edit(edit(proven(), "traffic.spec.gateway", ""), "traffic.gateway", None)
    judgement = judge(evidence, ALL)
    assert result(judgement, "GATE-01").detail.startswith("not needed")
    assert judgement.proven


def test_what_cannot_be_judged_is_skipped_with_the_reason() -> None:
    judgement = judge(FAULTS["controller-down"].evidence, ALL)
    assert result(judgement, "CTRL-04").detail == "not checked because CTRL-01 failed"
    assert result(judgement, "PRE-01").result == SUCCESS


def test_the_reason_goes_through_what_was_itself_skipped() -> None:
    judgement = judge(FAULTS["client-failed"].evidence, ALL)
    assert result(judgement, "KV-RIGHT-01").detail == "not checked because CLIENT-01 failed"


@pytest.mark.parametrize("kept", range(4))
def test_legs_that_were_never_sent_prove_nothing(kept: int) -> None:
    evidence = edit(proven(), "traffic.legs", lambda legs: legs[: kept * 3])
    judgement = judge(evidence, ALL)
    assert not judgement.proven
    assert judgement.exit_code != 0


def test_no_warning_hides_a_corrupted_half_behind_noise() -> None:
    noisy = FAULTS["noisy-server"].evidence
    judgement = judge(edit_legs(noisy, PEER, moved(0.5)), ALL)
    assert judgement.cause is not None
    assert judgement.cause.check.id == "KV-RIGHT-01"


def test_decode_that_is_down_is_not_blamed_on_its_registration() -> None:
    judgement = judge(FAULTS["decode-down"].evidence, ALL)
    assert result(judgement, "CTRL-04").result == SUCCESS


def test_log_lines_of_other_requests_do_not_count() -> None:
    evidence = edit(
        proven(),
        "logs.decode_hits",
        lambda hits: tuple(
            replace(hit, request_id=hit.request_id.replace("kvshare-7-1", "kvshare-7-11")) for hit in hits
        ),
    )
    assert result(judge(evidence, ALL), "KV-PEER-04").result == ERROR


def test_unreadable_log_is_not_taken_for_a_good_one() -> None:
    judgement = judge(edit(proven(), "logs.decode_hits", None), ALL)
    assert result(judgement, "KV-PEER-04").result == SKIPPED
    assert not judgement.proven
    assert judgement.exit_code == 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_expected_patches_are_those_that_the_image_gets(device: str, root: Path) -> None:
    program = (
        "import sys; from guard.series import load_all\n"
        "print(*(patch.id for series in load_all() for patch in series.of(sys.argv[1]).patches))"
    )
    command = [sys.executable, "-c", program, device]
    listed = subprocess.run(command, cwd=root / "docker", capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) == set(expected_patches(device))


# --- selecting ----------------------------------------------------------------------------------------------


def selected_in(evidence: Evidence, *only: str, skip: tuple[str, ...] = ()) -> Judgement:
    return judge(evidence, checks.select(only, skip))


def test_only_takes_ids_and_categories() -> None:
    judgement = selected_in(proven(), "configuration", "KV-CTL-01")
    categories = {r.check.category for r in judgement.results}
    assert categories == {"configuration", "kv-transfer"}
    assert [r.check.id for r in judgement.results if r.check.category == "kv-transfer"] == ["KV-CTL-01"]


def test_part_of_the_checks_proves_nothing_and_says_so() -> None:
    judgement = selected_in(proven(), skip=("KV-RIGHT-01",))
    assert not judgement.proven
    assert judgement.exit_code == 0
    assert "the proof needs all of them" in judgement.sentence


def test_selection_keeps_what_the_needs_found() -> None:
    judgement = selected_in(FAULTS["controller-down"].evidence, "CTRL-04")
    assert [r.detail for r in judgement.results] == ["not checked because CTRL-01 failed"]
    assert judgement.exit_code == 3


@pytest.mark.parametrize(
    ("only", "expected"), [((), True), (("engines", "images", "configuration"), False), (("DEC-01",), True)]
)
def test_traffic_is_sent_only_if_a_check_needs_it(only: tuple[str, ...], expected: bool) -> None:
    assert checks.needs_traffic(checks.select(only, ())) is expected


def test_bytes_that_others_pulled_are_right_only_if_the_owner_counts_their_transfers() -> None:
    twice = edit(proven(), "traffic.wire.bytes", lambda sent: 2 * sent)
    of_others = edit(twice, "traffic.owner_end.transfers", lambda transfers: transfers + 1)
    assert result(judge(twice, ALL), "KV-PEER-07").result == ERROR
    passed = result(judge(of_others, ALL), "KV-PEER-07")
    assert passed.result == SUCCESS
    assert "157286400 bytes for 6144 tokens, and 157286400 to others" in passed.detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("traffic.wire", None), "NIXL tells nothing at http://127.0.0.1:8204 of prefill's machine"),
        (("traffic.wire.dropped", 3.0), "NIXL lost count of 3 events, its bytes are not all"),
    ],
)
def test_what_nixl_cannot_tell_is_skipped_and_leaves_the_proof(
    change: tuple[str, float | None], reason: str
) -> None:
    judgement = judge(edit(proven(), *change), ALL)
    skipped = result(judgement, "KV-PEER-07")
    assert skipped.result == SKIPPED
    assert reason in skipped.detail
    assert judgement.proven
