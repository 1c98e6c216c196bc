"""A made-up benchmark for tests: five repetitions at three lengths, with costs that are known exactly."""

from __future__ import annotations

from dataclasses import replace

from kvshare.bench.observed import ArmRun, Closing, Observed, Opening, PointEnd, Repetition, Request
from kvshare.bench.results import Document, Facts, Link, RunFingerprint
from kvshare.bench.run import COMPLETE, make_document
from kvshare.bench.spec import ARMS, COLD, LOCAL_PREFIX, PEER, RECOMPUTE, BenchSpec, Goodput, Point
from kvshare.bench.stages import Moments
from kvshare.servers.readings import Counters, EngineTimes, Sources

CHUNK, TAIL, KV_BYTES = 256, 10, 25600
POINTS = tuple(Point(chunks * CHUNK + TAIL, 4) for chunks in (1, 2, 4))
SPEC = BenchSpec(
    prefill="http://127.0.0.1:8010",
    decode="http://127.0.0.1:8011",
    controller="http://127.0.0.1:9000",
    prefill_instance="lmcache_instance_1",
    points=POINTS,
    arms=ARMS,
    repetitions=5,
    chunk_size=CHUNK,
    seed=3,
)


def cold_ms(tokens: int) -> float:
    return 0.5 * tokens + 0.0005 * tokens**2


def pull_ms(tokens: int) -> float:
    return 200 + 0.1 * tokens


def run_of(arm: str, point: Point, repetition: int) -> ArmRun:
    tokens, shared = point.prompt_tokens, point.shared_tokens(CHUNK)
    ttft = {COLD: cold_ms(tokens), RECOMPUTE: cold_ms(tokens), PEER: pull_ms(tokens)}.get(arm, 20.0)
    ttft *= 1 + 0.01 * (repetition - 2)
    sources = {
        COLD: Sources(tokens, 0, 0),
        RECOMPUTE: Sources(tokens, 0, 0),
        LOCAL_PREFIX: Sources(tokens - shared, shared, 0),
    }.get(arm, Sources(tokens - shared, 0, shared))
    request = Request(
        request_id=f"kvbench-3-{point.prompt_tokens}{repetition}-{arm}-0",
        sent_s=0.0,
        prompt_tokens=tokens,
        output_tokens=4,
        ttft_ms=ttft,
        e2e_ms=ttft + 30,
        gaps_ms=(9.0, 10.0, 11.0),
    )
    engine = EngineTimes(1, ttft * 0.99 / 1000, ttft * 0.5 / 1000, ttft * 0.4 / 1000, 0.03)
    return ArmRun(arm, (request,), (ttft + 30) / 1000, sources, engine)


def observed() -> Observed:
    seen = Observed(
        opening=Opening("/models/kvshare-demo", 1600, POINTS, run_of(PEER, POINTS[0], 9)),
        closing=Closing(60.0),
    )
    for number, point in enumerate(POINTS):
        made = tuple(
            Repetition(number, r, tuple(run_of(arm, point, r) for arm in ARMS), 0.2) for r in range(5)
        )
        mean_s = 0.01 + KV_BYTES * point.shared_tokens(CHUNK) / 1e9
        end = PointEnd(number, Counters(transfers=5, transfer_seconds=5 * mean_s), 10, 0.02)
        seen = replace(seen, repetitions=(*seen.repetitions, *made), point_ends=(*seen.point_ends, end))
    return seen


def moments(seen: Observed) -> dict[str, Moments]:
    return {
        run.requests[0].request_id: Moments(0.3 * ttft, 0.1 * ttft, 0.2 * ttft)
        for repetition in seen.repetitions
        for run in repetition.arms
        if run.arm == PEER and (ttft := run.requests[0].ttft_ms) is not None
    }


def document(seen: Observed | None = None, **changes: object) -> Document:
    seen = observed() if seen is None else seen
    facts = Facts(
        "2026-11-24T10:00:00+00:00",
        COMPLETE,
        61.0,
        KV_BYTES,
        moments(seen),
        Link(1.5, "ucx_perftest, tcp"),
        RunFingerprint("0.1.0", "cpu", "tcp", "ab" * 32, {"prefill": {"versions": {"vllm": "0.32.0"}}}),
        Goodput(ttft_ms=500.0),
    )
    return make_document(seen, SPEC, replace(facts, **changes))  # type: ignore[arg-type]
