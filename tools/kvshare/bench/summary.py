"""From what the client saw to the figures of the document."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median

from kvshare.bench import stages
from kvshare.bench.observed import ArmRun, Observed, PointEnd, Repetition, Request
from kvshare.bench.results import Against, Arm, Cost, Facts, PointResult, Transfer
from kvshare.bench.spec import (
    COLD,
    GATEWAY,
    NODE_OF,
    PEER,
    RECOMPUTE,
    WORTH_QUOTING,
    BenchSpec,
    Goodput,
    Point,
)
from kvshare.bench.stats import Distribution, Ratio, distribution, percentile, ratio_of_medians
from kvshare.cost.fit import fit_prefill, fit_pull
from kvshare.cost.model import break_even
from kvshare.cost.model import verdict as verdict_of
from kvshare.servers.readings import EngineTimes, Sources

GB = 1e9
DECIDING = {"TTFT p50", "req/s"}


def point_results(observed: Observed, spec: BenchSpec, facts: Facts) -> tuple[PointResult, ...]:
    """Return the figures of every point that has any repetition."""
    points = observed.opening.points if observed.opening else ()
    ends = {end.point: end for end in observed.point_ends}
    found = []
    for number, point in enumerate(points):
        repetitions = [r for r in observed.repetitions if r.point == number]
        if repetitions:
            found.append(_point(point, repetitions, ends.get(number), spec, facts))
    return tuple(found)


def _point(
    point: Point,
    repetitions: Sequence[Repetition],
    end: PointEnd | None,
    spec: BenchSpec,
    facts: Facts,
) -> PointResult:
    kept = [repetition for repetition in repetitions if repetition.discarded is None]
    names = list(dict.fromkeys(run.arm for run in sorted_runs(repetitions)))
    waits = [r.admission_s for r in kept if r.admission_s is not None]
    peers = [run for r in kept if (run := r.arm(PEER)) is not None]
    return PointResult(
        point=point,
        arms=tuple(
            arm_figures(name, [run for r in kept if (run := r.arm(name))], facts.goodput) for name in names
        ),
        repetitions=len(kept),
        admission_ms=median(waits) * 1000 if waits else None,
        transfer=_transfer(end, spec.ranks, point.shared_tokens(spec.chunk_size), facts),
        stages=stages.split(peers, facts.moments) if point.is_alone else None,
        notes=(*_declined(point, spec), *_notes(repetitions)),
        peer_over_recompute=_peer_over_recompute(kept) if point.is_alone else None,
        against=tuple(_against(kept, [n for n in names if n != GATEWAY])) if point.load else (),
    )


def _against(repetitions: Sequence[Repetition], ways: Iterable[str]) -> Iterator[Against]:
    """Yield the gateway against each other way, over the repetitions in which both count."""
    for way in ways:
        runs = [(a, b) for r in repetitions if (a := r.arm(GATEWAY)) and (b := r.arm(way))]
        if runs:
            yield Against(
                way,
                _ratio(runs, lambda run: _at(run, 50, _ttft)),
                _ratio(runs, lambda run: _at(run, 99, _ttft)),
                _ratio(runs, lambda run: _at(run, 99, _gaps)) if _has_gaps(runs) else None,
                _ratio(runs, lambda run: len(run.requests) / run.wall_s),
            )


def _ttft(request: Request) -> Iterable[float | None]:
    return (request.ttft_ms,)


def _gaps(request: Request) -> Iterable[float | None]:
    return request.gaps_ms


def _has_gaps(runs: Iterable[tuple[ArmRun, ArmRun]]) -> bool:
    return all(any(request.gaps_ms for request in run.requests) for pair in runs for run in pair)


def _at(run: ArmRun, percent: float, read: Callable[[Request], Iterable[float | None]]) -> float:
    return percentile(sorted(v for r in run.requests for v in read(r) if v is not None), percent)


def _ratio(runs: Sequence[tuple[ArmRun, ArmRun]], figure: Callable[[ArmRun], float]) -> Ratio:
    return ratio_of_medians([figure(ours) for ours, _ in runs], [figure(theirs) for _, theirs in runs])


def _peer_over_recompute(repetitions: Sequence[Repetition]) -> Ratio | None:
    peer, recompute = (
        [ttft_ms for repetition in repetitions for ttft_ms in _first_tokens_ms(repetition, arm)]
        for arm in (PEER, RECOMPUTE)
    )
    return ratio_of_medians(peer, recompute) if peer and recompute else None


def _first_tokens_ms(repetition: Repetition, arm: str) -> list[float]:
    run = repetition.arm(arm)
    return [] if run is None else [r.ttft_ms for r in run.requests if r.ttft_ms is not None]


def sorted_runs(repetitions: Iterable[Repetition]) -> list[ArmRun]:
    """Return all runs in the order of the arms as documented, whatever order they ran in."""
    places = {name: place for place, name in enumerate(NODE_OF)}
    return sorted((run for r in repetitions for run in r.arms), key=lambda run: places[run.arm])


def arm_figures(name: str, runs: Sequence[ArmRun], goodput: Goodput | None) -> Arm:
    """Return one arm's figures over its runs, one a repetition."""

    def spread_of(read: Callable[[Request], Iterable[float | None]]) -> Distribution | None:
        return distribution(
            [value for request in run.requests for value in read(request) if value is not None]
            for run in runs
        )

    requests = [request for run in runs for request in run.requests]
    engine = sum((run.engine for run in runs if run.engine is not None), EngineTimes())
    return Arm(
        arm=name,
        node=NODE_OF[name],
        repetitions=len(runs),
        requests=len(requests),
        prompt_tokens=sum(request.prompt_tokens for request in requests),
        output_tokens=sum(request.output_tokens for request in requests),
        ttft_ms=spread_of(lambda request: (request.ttft_ms,)),
        tbt_ms=spread_of(lambda request: request.gaps_ms),
        tpot_ms=spread_of(lambda request: (request.tpot_ms,)),
        e2e_ms=spread_of(lambda request: (request.e2e_ms,)),
        request_throughput=_rate(runs, len),
        output_throughput=_rate(runs, lambda rs: sum(r.output_tokens for r in rs)),
        total_throughput=_rate(runs, lambda rs: sum(r.prompt_tokens + r.output_tokens for r in rs)),
        goodput=None if goodput is None else _rate(runs, lambda rs: sum(meets(r, goodput) for r in rs)),
        queue_ms=_mean_ms(engine.queue_s, engine.requests),
        prefill_ms=_mean_ms(engine.prefill_s, engine.requests),
        decode_ms=_mean_ms(engine.decode_s, engine.requests),
        sources=sum((run.sources for run in runs if run.sources is not None), Sources()),
    )


def meets(request: Request, limits: Goodput) -> bool:
    """Return whether an answered request meets every limit; one output token has no TPOT to miss."""
    measured = (
        (request.ttft_ms, limits.ttft_ms),
        (request.tpot_ms or 0.0, limits.tpot_ms),
        (request.e2e_ms, limits.e2e_ms),
    )
    return request.error is None and all(
        limit is None or (value is not None and value <= limit) for value, limit in measured
    )


def _rate(runs: Sequence[ArmRun], count: Callable[[tuple[Request, ...]], int]) -> float | None:
    rates = [count(run.requests) / run.wall_s for run in runs if run.wall_s > 0]
    return median(rates) if rates else None


def _mean_ms(seconds: float, requests: float) -> float | None:
    return seconds / requests * 1000 if requests else None


def _transfer(end: PointEnd | None, ranks: int, tokens: int, facts: Facts) -> Transfer | None:
    """Return the pulls' time by the owner's counters, with the bytes that the tokens take.

    Its ranks transfer their shares of a pull at once.
    """
    if end is None or end.owner is None or end.owner.transfers <= 0 or end.owner.transfer_seconds <= 0:
        return None  # who only hands out addresses measures no time
    seconds = end.owner.transfer_seconds / end.owner.transfers
    size = None if facts.kv_bytes_per_token is None else float(facts.kv_bytes_per_token * tokens)
    speed = size / seconds / GB if size is not None and seconds > 0 else None
    ratio = speed / facts.link.gb_per_s if speed is not None and facts.link.gb_per_s else None
    return Transfer(round(end.owner.transfers / ranks), tokens, seconds * 1000, size, speed, ratio)


def _declined(point: Point, spec: BenchSpec) -> tuple[str, ...]:
    """Say that the peer arm is no pull, where decode's threshold makes it compute."""
    if PEER not in spec.arms or not point.shared_tokens(spec.chunk_size) or not spec.declined(point):
        return ()
    below = "" if spec.threshold.tokens is None else f" below {spec.threshold.tokens:,} tokens"
    return (f"peer: declined{below} ({spec.threshold.assignment}), decode computes these prompts",)


def _notes(repetitions: Iterable[Repetition]) -> tuple[str, ...]:
    found = []
    for repetition in repetitions:
        if repetition.discarded is not None:
            found.append(f"repetition {repetition.number + 1} discarded: {repetition.discarded}")
        found += [
            f"repetition {repetition.number + 1}, {run.arm} not counted: {run.fault}"
            for run in repetition.arms
            if run.fault is not None and repetition.discarded is None
        ]
    return tuple(found)


def fit_cost(
    points: Sequence[PointResult], observed: Observed, spec: BenchSpec, kv_bytes: int | None
) -> Cost | None:
    """Return the fits over the points of one request in flight and a whole shared prefix that was pulled.

    What a pull saves is decode's own computation: the arm recompute, or cold where that was not measured.
    None with fewer than two lengths, or where a token's bytes are not known.
    """
    lengths = {
        number: point
        for number, point in enumerate(observed.opening.points if observed.opening else ())
        if point.tells_costs
    }
    computing = RECOMPUTE if RECOMPUTE in spec.arms else COLD
    computed = _samples(observed, lengths, computing)
    pulled = {number: point for number, point in lengths.items() if not spec.declined(point)}
    peer = _samples(observed, pulled, PEER)
    if kv_bytes is None or min(len({n for n, _ in computed}), len({n for n, _ in peer})) < 2:
        return None
    pull, prefill = fit_pull(peer, kv_bytes), fit_prefill(computed)
    tokens = [n for n, _ in peer]
    moved = [
        (float(r.point.shared_tokens(spec.chunk_size)), r.transfer.mean_ms / 1000)
        for r in points
        if r.transfer is not None and r.point in lengths.values() and r.transfer.mean_ms > 0
    ]
    transfer = fit_pull(moved, kv_bytes) if len({n for n, _ in moved}) >= 2 else None
    return Cost(pull, prefill, transfer, break_even(pull, prefill), round(min(tokens)), round(max(tokens)))


def _samples(observed: Observed, lengths: Mapping[int, Point], arm: str) -> list[tuple[float, float]]:
    """Return (tokens, seconds to first token) of every counted request of an arm."""
    return [
        (float(lengths[repetition.point].prompt_tokens), ttft_ms / 1000)
        for repetition in observed.repetitions
        if repetition.point in lengths
        for ttft_ms in _first_tokens_ms(repetition, arm)
    ]


def verdict(found: Cost | None, points: Sequence[PointResult], observed: Observed, spec: BenchSpec) -> str:
    """Return whether reuse pays here: by the fit, or where there is none by what was measured."""
    if spec.gateway is not None:
        return verdict_of_ways(points)
    if found is not None:
        longest = observed.opening.max_model_len if observed.opening else None
        return verdict_of(found.break_even_tokens, spec.chunk_size, longest)
    whole = [r for r in points if r.point.shared_percent == 100 and not spec.declined(r.point)]
    ratios = [r.ttft_ms(PEER) / r.ttft_ms(COLD) for r in whole if r.arm(PEER) and r.arm(COLD)]
    if not ratios:
        return "no verdict: it takes the arms cold and peer, and a pull that is made"
    best = min(ratios)
    if best < 1:
        return f"worth it at the length measured: first token {100 * (1 - best):.0f} % sooner from the peer"
    return f"not worth it at the length measured: recomputing is {best:.2f} times as fast"


def verdict_of_ways(points: Iterable[PointResult]) -> str:
    """Return for which loads the gateway is worth it, beyond chance, and all in which it loses.

    Worth it: sooner to the first token or more requests a second than every other way, and in neither worse.
    """
    compared = [result for result in points if result.against]
    if not compared:
        return "no verdict: not one repetition counts with the gateway and another way"
    worth = [str(result.point.load) for result in compared if _is_worth_it(result.against)]
    losses = [
        f"{result.point.load} ({', '.join(one.worse)} against {one.way})"
        for result in compared
        for one in result.against
        if one.worse
    ]
    said = f"worth it for {', '.join(worth)}" if worth else "not worth it for any of these loads"
    said += f"; loses on {', '.join(losses)}" if losses else "; loses nowhere"
    few = min(result.repetitions for result in compared) < WORTH_QUOTING
    return (
        f"{said}; not to be quoted, with fewer than {WORTH_QUOTING} repetitions it may be chance"
        if few
        else said
    )


def _is_worth_it(against: Sequence[Against]) -> bool:
    gained = set.intersection(*(set(one.better) for one in against)) & DECIDING
    return bool(gained) and not any(DECIDING & set(one.worse) for one in against)
