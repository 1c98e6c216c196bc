"""The benchmark's arithmetic: percentiles, rules, fits, break-even, stages, goodput, comparison."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshare.bench import compare, load, outputs, rules, stages, stats, summary
from kvshare.bench.observed import ArmRun, Observed, Request
from kvshare.bench.progress import done_and_total, left_s
from kvshare.bench.run import exit_code
from kvshare.bench.spec import COLD, LOCAL_LMCACHE, LOCAL_PREFIX, PEER, RECOMPUTE, Goodput, Point
from kvshare.errors import KvshareError
from kvshare.servers.readings import Counters, Sources
from tests.unit.bench_build import CHUNK, KV_BYTES, POINTS, SPEC, cold_ms, document, observed, pull_ms

# --- percentiles --------------------------------------------------------------------------------------------


def test_the_interval_of_a_ratio_holds_the_true_one_and_narrows_with_the_sample() -> None:
    draw = random.Random(2)
    above, below = ([draw.gauss(mean, 5) for _ in range(400)] for mean in (100, 50))
    many = stats.ratio_of_medians(above, below)
    assert 1.9 < many.low < many.value < many.high < 2.1
    fewer = stats.ratio_of_medians(above[:20], below[:20])
    assert fewer.high - fewer.low > 2 * (many.high - many.low)
    assert stats.ratio_of_medians([3.0], [2.0]) == stats.Ratio(1.5, 1.5, 1.5)


def test_a_pull_is_compared_with_decodes_own_computation_where_requests_are_alone() -> None:
    seen = observed()
    assert seen.opening is not None
    crowded = replace(POINTS[0], concurrency=4)
    seen = replace(seen, opening=replace(seen.opening, points=(crowded, *POINTS[1:])))
    first, *others = document(seen).points
    assert first.peer_over_recompute is None
    for result in others:
        assert result.peer_over_recompute is not None
        assert result.peer_over_recompute.value == result.ttft_ms(PEER) / result.ttft_ms(RECOMPUTE)


@pytest.mark.parametrize(("repetitions", "between"), [(5, True), (4, False)])
def test_a_ratio_of_few_repetitions_is_told_without_how_sure_it_is(repetitions: int, between: bool) -> None:
    result = replace(document().points[0], repetitions=repetitions)
    (line,) = [line for line in outputs.below(result) if "peer over recompute" in line]
    assert line.endswith("with 95 % confidence)") == between


def test_percentiles_are_linear_between_neighbours() -> None:
    assert stats.percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert stats.percentile([1.0, 2.0, 3.0, 4.0], 90) == pytest.approx(3.7)
    assert stats.percentile([7.0], 99) == 7.0


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=1), min_size=1))
def test_a_distribution_is_ordered(groups: list[list[float]]) -> None:
    found = stats.distribution(groups)
    assert found is not None
    low, high = min(map(min, groups)), max(map(max, groups))
    assert low <= found.p50 <= found.p90 <= found.p99 <= high or math.isclose(low, high)
    assert found.spread >= 0
    assert found.count == sum(map(len, groups))


def test_the_spread_is_that_of_the_repetitions_medians() -> None:
    found = stats.distribution([[1, 2, 300], [4, 5, 6], [5, 6, 7], [7, 8, 9], [100, 101, 102]])
    assert found is not None
    assert found.spread == 8 - 5


def test_nothing_measured_has_no_distribution() -> None:
    assert stats.distribution([[], []]) is None


# --- what counts --------------------------------------------------------------------------------------------


def arm_run(arm: str, sources: Sources | None, error: str | None = None) -> ArmRun:
    return ArmRun(arm, (Request("r", 0.0, 522, 4, 10.0, 20.0, (), error),), 1.0, sources)


@pytest.mark.parametrize(
    ("arm", "sources", "shared", "sentence"),
    [
        (RECOMPUTE, Sources(266, 0, 256), 512, "the control got 256 tokens"),
        (COLD, Sources(10, 0, 512), 512, "the arm cold got 512 tokens"),
        (LOCAL_PREFIX, Sources(10, 256, 256), 512, "the arm local-prefix got 256 tokens"),
        (COLD, Sources(516, 6, 0), 512, "1 % of the arm cold came from vLLM's own cache"),
        (PEER, Sources(10, 512, 0), 512, "98 % of the arm peer came from vLLM's own cache"),
        (LOCAL_LMCACHE, Sources(10, 512, 0), 512, "98 % of the arm local-lmcache"),
        (PEER, Sources(266, 0, 256), 0, "although nothing was shared"),
    ],
)
def test_a_repetition_is_discarded(arm: str, sources: Sources, shared: int, sentence: str) -> None:
    assert sentence in str(rules.violation([arm_run(arm, sources)], shared))


@pytest.mark.parametrize(
    ("arm", "sources"),
    [
        (COLD, Sources(517, 5, 0)),  # under 1 %
        (LOCAL_PREFIX, Sources(10, 512, 0)),
        (LOCAL_LMCACHE, Sources(10, 0, 512)),
        (PEER, Sources(10, 0, 512)),
        (PEER, Sources(522, 0, 0)),  # a fault of the arm, not of the repetition
        (RECOMPUTE, None),
    ],
)
def test_a_repetition_counts(arm: str, sources: Sources | None) -> None:
    assert rules.violation([arm_run(arm, sources)], 512) is None


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (arm_run(PEER, Sources(522, 0, 0)), "0 of 512 tokens came from LMCache"),
        (arm_run(PEER, Sources(266, 0, 256)), "256 of 512 tokens"),
        (arm_run(LOCAL_PREFIX, Sources(522, 0, 0)), "vLLM's own cache held 0 of 512 tokens"),
        (arm_run(COLD, None), "does not count prompt tokens by source"),
        (arm_run(COLD, Sources(1044, 0, 0)), "1044 prompt tokens, 522 were sent: others use it too"),
        (arm_run(COLD, Sources(0, 0, 0), "it died"), "1 of 1 requests failed: it died"),
    ],
)
def test_an_arm_has_no_figures(run: ArmRun, sentence: str) -> None:
    assert sentence in str(rules.fault(run, 512))


# --- load ---------------------------------------------------------------------------------------------------


def test_poisson_arrivals_have_their_rate_and_their_seed() -> None:
    moments = load.arrivals(5000, 8.0, 1)
    assert moments == load.arrivals(5000, 8.0, 1)
    assert moments[0] == 0.0
    assert 5000 / moments[-1] == pytest.approx(8.0, rel=0.05)


@given(st.integers(1, 64), st.floats(0, 100))
def test_shared_tokens_are_whole_chunks(chunks: int, percent: float) -> None:
    shared = Point(chunks * CHUNK + 10, 4, shared_percent=percent).shared_tokens(CHUNK)
    assert shared % CHUNK == 0
    assert 0 <= shared <= chunks * CHUNK
    assert abs(shared - chunks * CHUNK * percent / 100) < CHUNK


# --- the document -------------------------------------------------------------------------------------------


def test_the_document_has_the_fits_of_what_was_observed() -> None:
    found = document()
    assert found.cost is not None
    assert found.cost.pull.t0_s == pytest.approx(0.2, rel=0.01)
    assert found.cost.prefill.linear_s == pytest.approx(0.5e-3, rel=0.01)
    assert found.cost.break_even_tokens == pytest.approx(
        next(n for n in range(1, 5000) if pull_ms(n) < cold_ms(n)), rel=0.02
    )
    assert found.verdict == "worth it from 512 tokens"
    assert found.moved_tokens == 5 * (1 + 2 + 4) * CHUNK


def test_the_transfers_speed_is_bytes_over_the_owners_time_and_its_share_of_the_link() -> None:
    found = document().points[2].transfer
    assert found is not None
    size = 4 * CHUNK * KV_BYTES
    assert found.bytes_per_pull == size
    assert found.gb_per_s == pytest.approx(size / (0.01 + size / 1e9) / 1e9)
    assert found.of_link == pytest.approx(size / (0.01 + size / 1e9) / 1e9 / 1.5)


def test_an_owner_that_measures_no_time_tells_no_speed() -> None:
    seen = observed()
    ends = tuple(replace(end, owner=Counters(transfers=20)) for end in seen.point_ends)
    assert {point.transfer for point in document(replace(seen, point_ends=ends)).points} == {None}


def test_throughput_is_tokens_over_wall_time() -> None:
    arm = document().points[0].arm(COLD)
    assert arm is not None
    wall_s = (cold_ms(POINTS[0].prompt_tokens) + 30) / 1000
    assert arm.output_throughput == pytest.approx(4 / wall_s)
    assert arm.request_throughput == pytest.approx(1 / wall_s)


@pytest.mark.parametrize(
    ("limits", "met"),
    [
        (Goodput(), True),
        (Goodput(ttft_ms=100.0), True),
        (Goodput(ttft_ms=99.0), False),
        (Goodput(tpot_ms=10.0), True),
        (Goodput(tpot_ms=9.9), False),
        (Goodput(ttft_ms=100.0, e2e_ms=129.0), False),
    ],
)
def test_goodput_counts_what_meets_every_limit(limits: Goodput, met: bool) -> None:
    assert summary.meets(Request("r", 0.0, 266, 4, 100.0, 130.0, (10.0, 10.0, 10.0)), limits) is met
    assert not summary.meets(Request("r", 0.0, 266, error="it died"), limits)


def test_one_length_gives_a_verdict_of_that_length() -> None:
    seen = observed()
    seen = replace(seen, repetitions=tuple(r for r in seen.repetitions if r.point == 2))
    found = document(seen)
    assert found.cost is None
    assert found.verdict.startswith("worth it at the length measured: first token 7")


def test_discarded_repetitions_are_said_and_not_counted() -> None:
    seen = observed()
    first, *rest = seen.repetitions
    found = document(
        replace(seen, repetitions=(replace(first, discarded="the control got 256 tokens"), *rest))
    )
    assert found.points[0].repetitions == 4
    assert found.points[0].notes == ("repetition 1 discarded: the control got 256 tokens",)


@pytest.mark.parametrize(
    ("change", "interrupted", "code"),
    [
        ({}, False, 0),
        ({}, True, 130),
        ({"ended": "decode went down during the run"}, False, 3),
        ({"moved_tokens": 0}, False, 1),
        ({"points": ()}, False, 1),
    ],
)
def test_exit_codes(change: dict[str, object], interrupted: bool, code: int) -> None:
    found = replace(document(), **change)  # type: ignore[arg-type]
    assert exit_code(found, SPEC, interrupted) == code


def test_no_byte_needs_to_move_where_nothing_is_shared() -> None:
    alone = replace(SPEC, points=tuple(replace(point, shared_percent=0.0) for point in POINTS))
    assert exit_code(replace(document(), moved_tokens=0), alone, False) == 0
    assert exit_code(replace(document(), moved_tokens=0), replace(SPEC, arms=(COLD,)), False) == 0


def test_an_empty_run_is_a_document_too() -> None:
    found = document(Observed())
    assert found.points == ()
    assert found.verdict == "no verdict: it takes the arms cold and peer, and a pull that is made"


def test_files_hold_every_request_and_every_figure(tmp_path: Path) -> None:
    outputs.write(tmp_path, document(), observed())
    assert outputs.load(tmp_path / outputs.JSON) == document()
    lines = [json.loads(line) for line in (tmp_path / outputs.LINES).read_text().splitlines()]
    assert len(lines) == 3 * 5 * 5
    assert {line["arm"] for line in lines} == set(SPEC.arms)
    header, *rows = (tmp_path / outputs.CSV).read_text().splitlines()
    assert len(rows) == 3 * 5
    assert all(len(row.split(",")) == len(header.split(",")) for row in rows)


def test_another_versions_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"schema_version": 99}')
    with pytest.raises(KvshareError, match="schema_version is 99, this version reads 1"):
        outputs.load(path)


# --- stages -------------------------------------------------------------------------------------------------

DECODE_LOG = """\
[2026-11-24 10:50:30,985] LMCache INFO: Got layout info from controller: ('lmcache_instance_1', 'x', 6, 'y')
[2026-11-24 10:50:31,139] LMCache INFO: Responding to scheduler for lookup id \
cmpl-kvbench-12-3-peer-0-0-baa0e0cd with retrieved length 1536
[2026-11-24 10:50:31,146] LMCache INFO: Reqid: cmpl-kvbench-12-3-peer-0-0-baa0e0cd, Total tokens 1546, more
[2026-11-24 10:50:31,299] LMCache INFO: [req_id=cmpl-kvbench-12-3-peer-0-0-baa0e0cd] Retrieved 1536 out of \
1536 required tokens (from 1536 total tokens). size: 0.0366 gb, cost 149.5487 ms, throughput: 0.2449 GB/s;
"""
OWNER_LOG = """\
[2026-11-24 10:50:31,095] LMCache INFO: Received P2P batched lookup and get msg, \
lookup_id: cmpl-kvbench-12-3-peer-0-0-baa0e0cd (p2p_backend.py:394)
[2026-11-24 10:50:31,138] LMCache INFO: P2P transfer finished for request 1 (p2p_backend.py:383)
"""


def test_moments_are_read_from_both_logs() -> None:
    found = stages.read_moments(DECODE_LOG, OWNER_LOG)["kvbench-12-3-peer-0"]
    assert found == stages.Moments(161.0, 149.5487, 43.0)


def test_of_several_ranks_the_slowest_counts() -> None:
    """Their lines do not say which rank's they are."""
    slow = OWNER_LOG.replace(",138] LMCache INFO: P2P", ",208] LMCache INFO: P2P")
    assert slow != OWNER_LOG
    pairs = zip(OWNER_LOG.splitlines(), slow.splitlines(), strict=True)
    found = stages.read_moments(DECODE_LOG, "\n".join(line for pair in pairs for line in pair))
    assert found["kvbench-12-3-peer-0"].transfer_ms == 113.0


def test_the_colours_of_a_log_are_no_matter() -> None:
    coloured = [
        log.replace("INFO:", "INFO:\x1b[0m").replace("[2026", "\x1b[32;20m[2026")
        for log in (DECODE_LOG, OWNER_LOG)
    ]
    assert stages.read_moments(*coloured) == stages.read_moments(DECODE_LOG, OWNER_LOG)


def test_a_pull_that_one_log_does_not_show_has_no_stages() -> None:
    assert stages.read_moments(DECODE_LOG, "") == {}
    assert stages.read_moments("", OWNER_LOG) == {}


def test_stages_add_up_to_what_the_client_measured() -> None:
    for result in document().points:
        found = result.stages
        assert found is not None
        assert found.requests == 5
        assert sum(value for _, value in found.named) == pytest.approx(found.sum_ms)
        assert found.sum_over_ttft == pytest.approx(0.99)
        shares = [value / found.ttft_ms for _, value in found.named]
        assert shares == pytest.approx([0.2, 0.2, 0.1, 0.1, 0.3, 0.09])


# --- comparison and progress --------------------------------------------------------------------------------


def test_a_run_does_not_differ_from_itself() -> None:
    found = compare.compare(document(), document())
    assert {difference.ratio for difference in found} == {1.0}
    assert not any(difference.exceeds_spread for difference in found)


def test_what_exceeds_the_spread_is_told_from_what_does_not() -> None:
    slow = observed()
    scaled = tuple(
        replace(r, arms=tuple(_slower(run, 1.2 if run.arm == PEER else 1.005) for run in r.arms))
        for r in slow.repetitions
    )
    found = compare.compare(document(), document(replace(slow, repetitions=scaled)))
    ttft = {(d.arm, d.exceeds_spread) for d in found if d.metric == "ttft_ms"}
    assert (PEER, True) in ttft
    assert (COLD, False) in ttft


def _slower(run: ArmRun, factor: float) -> ArmRun:
    (request,) = run.requests
    assert request.ttft_ms is not None
    return replace(run, requests=(replace(request, ttft_ms=request.ttft_ms * factor),))


def test_runs_without_a_common_point_are_refused() -> None:
    with pytest.raises(KvshareError, match="nothing to compare"):
        compare.compare(document(), replace(document(), points=()))


def test_differing_runs_are_warned_of() -> None:
    other = document(ended="interrupted by Ctrl-C")
    other = replace(other, fingerprint=replace(other.fingerprint, configuration_hash="cd" * 32))
    told = " ".join(compare.warnings(document(), other))
    assert "configurations differ" in told
    assert "the second run is not complete: interrupted" in told


def test_progress_counts_work_not_repetitions() -> None:
    seen = observed()
    assert done_and_total(SPEC, seen) == (5 * (282 + 538 + 1050), 5 * (282 + 538 + 1050))
    first = replace(seen, repetitions=tuple(r for r in seen.repetitions if r.point == 0))
    done, total = done_and_total(SPEC, first)
    assert left_s(10.0, done, total) == pytest.approx(10.0 * (538 + 1050) / 282)
    assert left_s(10.0, 0.0, total) is None
