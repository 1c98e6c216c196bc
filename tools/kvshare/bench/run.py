"""One benchmark, from the operator's machine: plan the points, watch the client, and sum up."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

from rich.console import Console

from kvshare.bench import calibrate, gather, linkspeed, rules, summary
from kvshare.bench.observed import Observed
from kvshare.bench.progress import following
from kvshare.bench.results import SCHEMA_VERSION, Document, Facts, Link, Model
from kvshare.bench.spec import ARMS, LOADS, PEER, TURNS, WAYS, WORTH_QUOTING, BenchSpec, Goodput, Point
from kvshare.config import threshold
from kvshare.config.settings import Settings
from kvshare.config.threshold import PULL_ALWAYS, Threshold
from kvshare.contract import Fingerprint
from kvshare.errors import COULD_NOT_CHECK, FAILED, INTERRUPTED, PROVEN, KvshareError
from kvshare.servers.prompts import DEFAULT_CHUNK_SIZE, TAIL, require_prompt_tokens
from kvshare.servers.sharing import address_of, caches_of
from kvshare.site.base import Site
from kvshare.site.compose import read_stack
from kvshare.site.containers import Containers
from kvshare.stack.members import Stack

DEFAULT_MAX_MODEL_LEN = 1600
LONGEST_DEFAULT = 32768  # tokens; longer ones only on request
DEFAULT_LENGTHS = 5
ALL_LENGTHS = 16  # of a calibration: the break-even may be at the shortest
CLIENTS = 4  # of the gateway, where the user says nothing
UNMEASURED = Link(None, "")
COMPLETE, INTERRUPTED_BY_USER = "complete", "interrupted by Ctrl-C"


@dataclass(frozen=True)
class Options:
    """What the user chose; without lengths, those that suit the model."""

    arms: tuple[str, ...] = ARMS
    prompt_tokens: tuple[int, ...] | None = None
    output_tokens: tuple[int, ...] = (16,)
    concurrency: tuple[int, ...] | None = None
    rates: tuple[float, ...] | None = None
    shared_percent: tuple[float, ...] = (100.0,)
    requests: int | None = None
    repetitions: int = WORTH_QUOTING
    seed: int | None = None
    wait_s: float = 60.0
    goodput: Goodput | None = None
    node: str | None = None
    calibrate: bool = False
    through: str | None = None


@dataclass(frozen=True)
class Finished:
    """A benchmark's document, what it was made from, and the exit code it deserves."""

    document: Document
    observed: Observed
    exit_code: int


def run(settings: Settings, options: Options, console: Console) -> Finished:
    """Benchmark the running stack; KvshareError or CouldNotCheckError where nothing can be measured."""
    stack = read_stack(settings)
    measured = stack if options.through else stack.pairs(options.node)[0]
    return measure(Containers(measured, settings), options, console)


def measure(site: Site, options: Options, console: Console) -> Finished:
    """Benchmark the pair of servers that run on a site; raises as ``run`` does."""
    stack = site.stack
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begun = time.monotonic()
    gather.require_running(site)
    prints = gather.fingerprints(site)
    running = threshold.of_server(prints[stack.decode.name].lmcache)
    spec = make_spec(stack, prints[stack.prefill.name], options, running)
    if options.calibrate:
        calibrate.require(spec)
    link = UNMEASURED
    if spec.gateway is None:
        console.print("  measuring the link between the servers", markup=False)
        link = linkspeed.measure(site, prints)
    # Before the run, because a server may be gone after it.
    architecture = gather.architecture(site, prints[stack.decode.name])
    kv_bytes = None if architecture is None else architecture.kv_bytes_per_token
    fingerprint = gather.run_fingerprint(site, prints)
    with following(spec, console) as told:
        observed, interrupted = gather.observe(site, spec, told)
    ended = _ending(observed, interrupted)
    facts = Facts(
        started, ended, time.monotonic() - begun, kv_bytes, gather.moments(site), link, fingerprint,
        options.goodput,
    )  # fmt: skip
    document = make_document(observed, spec, facts)
    return Finished(document, observed, exit_code(document, spec, interrupted))


def make_document(observed: Observed, spec: BenchSpec, facts: Facts) -> Document:
    """Return the document of what was seen."""
    kv_bytes, opening = facts.kv_bytes_per_token, observed.opening
    points = summary.point_results(observed, spec, facts)
    cost = summary.fit_cost(points, observed, spec, kv_bytes)
    first = opening.first_pull.requests[0] if opening and opening.first_pull else None
    return Document(
        schema_version=SCHEMA_VERSION,
        started=facts.started,
        ended=facts.ended,
        seconds=facts.seconds,
        seed=spec.seed,
        arms=spec.arms,
        repetitions=spec.repetitions,
        chunk_size=spec.chunk_size,
        model=Model(opening.model if opening else "", opening.max_model_len if opening else None, kv_bytes),
        first_pull_ms=None if first is None else first.ttft_ms,
        points=points,
        link=facts.link,
        cost=cost,
        verdict=summary.verdict(cost, points, observed, spec),
        moved_tokens=rules.moved_by_peers(observed.repetitions),
        goodput=facts.goodput,
        fingerprint=facts.fingerprint,
        notes=_notes(points, spec, kv_bytes),
        threshold=spec.threshold,
    )


def exit_code(document: Document, spec: BenchSpec, interrupted: bool) -> int:
    """Return 130 after Ctrl-C, 3 where a server went down, 1 where nothing moved or counts, else 0."""
    if interrupted:
        return INTERRUPTED
    if document.ended != COMPLETE:
        return COULD_NOT_CHECK
    pulls = any(point.shared_tokens(spec.chunk_size) and not spec.declined(point) for point in spec.points)
    if (PEER in spec.arms or spec.gateway) and pulls and document.moved_tokens == 0:
        return FAILED
    empty = any(result.repetitions == 0 for result in document.points)
    return FAILED if empty or not document.points else PROVEN


def closing_sentence(document: Document, code: int) -> str | None:
    """Return why the exit code is not 0, in one sentence, or None."""
    if code == FAILED and document.moved_tokens == 0 and document.arms == WAYS:
        return "no byte moved through the gateway: type make verify, which names the cause."
    if code == FAILED and document.moved_tokens == 0 and PEER in document.arms:
        return "no byte moved in the peer arm: type make verify, which names the cause."
    if code == FAILED:
        return "not one repetition of some point counts, for the reasons above."
    return None if code == PROVEN else f"{document.ended}; what was measured is kept."


def make_spec(
    stack: Stack, prefill: Fingerprint, options: Options, running: Threshold = PULL_ALWAYS
) -> BenchSpec:
    """Return the client's task; KvshareError if lengths or loads cannot work with what prefill runs."""
    chunk_size = int(prefill.lmcache.get("chunk_size", DEFAULT_CHUNK_SIZE))
    longest = prefill.max_model_len or DEFAULT_MAX_MODEL_LEN
    through = options.through is not None
    if through and stack.gateway is None:
        raise KvshareError("--through gateway: this stack has no gateway.")
    return BenchSpec(
        ranks=stack.prefill.ranks,
        prefill=stack.prefill.url,
        decode=stack.decode.url,
        controller=stack.controller.url,
        prefill_instance=address_of(stack.prefill),
        points=(make_loads if through else make_points)(options, chunk_size, longest),
        arms=WAYS if through else options.arms,
        repetitions=options.repetitions,
        chunk_size=chunk_size,
        seed=random.SystemRandom().randrange(2**31) if options.seed is None else options.seed,
        wait_s=options.wait_s,
        threshold=running,
        caches=caches_of(stack),
        gateway=stack.gateway.url if through and stack.gateway else None,
        servers=tuple(server.url for server in (stack.prefill, *stack.decodes)) if through else (),
    )


def make_loads(options: Options, chunk_size: int, longest: int) -> tuple[Point, ...]:
    """Return every load at every length and number of clients; the longest length that is sent by default."""
    lengths = options.prompt_tokens or default_lengths(chunk_size, longest, max(options.output_tokens), 1)
    for tokens, output in product(lengths, options.output_tokens):
        require_prompt_tokens(tokens, chunk_size, longest, output)
    return tuple(
        Point(tokens, output, clients, requests=options.requests or TURNS * clients, load=load)
        for tokens, output, clients, load in product(
            lengths, options.output_tokens, options.concurrency or (CLIENTS,), LOADS
        )
    )


def make_points(options: Options, chunk_size: int, longest: int) -> tuple[Point, ...]:
    """Return every combination of what the user chose, the shortest prompts first."""
    most = ALL_LENGTHS if options.calibrate else DEFAULT_LENGTHS
    lengths = options.prompt_tokens or default_lengths(chunk_size, longest, max(options.output_tokens), most)
    for tokens, output in product(lengths, options.output_tokens):
        require_prompt_tokens(tokens, chunk_size, longest, output)
    loads: list[tuple[int, float | None]] = [(c, None) for c in options.concurrency or (1,)]
    if options.rates:
        loads = [(1, rate) for rate in options.rates]
    return tuple(
        Point(tokens, output, concurrency, rate, shared, options.requests or _requests(concurrency, rate))
        for tokens, output, (concurrency, rate), shared in product(
            sorted(lengths), options.output_tokens, loads, options.shared_percent
        )
    )


def default_lengths(
    chunk_size: int, longest: int, output_tokens: int, count: int = DEFAULT_LENGTHS
) -> tuple[int, ...]:
    """Return prompt lengths that double up to the longest that the model takes, the ``count`` longest."""
    most = min(longest - output_tokens - TAIL, LONGEST_DEFAULT) // chunk_size
    if most < 1:
        raise KvshareError(
            f"MAX_MODEL_LEN={longest} leaves no room for one chunk of {chunk_size} tokens and "
            f"{output_tokens} to generate."
        )
    chunks = {most} | {2**power for power in range(most.bit_length()) if 2**power <= most}
    # One that is nearly as long as the longest tells little and costs as much.
    kept = sorted(c for c in chunks if c == most or c <= 0.75 * most)
    return tuple(c * chunk_size + TAIL for c in kept[-count:])


def _requests(concurrency: int, rate: float | None) -> int:
    """Return the requests of a repetition: one wave, or what arrives in five seconds."""
    return concurrency if rate is None else max(4, round(5 * rate))


def _ending(observed: Observed, interrupted: bool) -> str:
    if interrupted:
        return INTERRUPTED_BY_USER
    if observed.closing is None:
        return "the client container ended early"
    return observed.closing.stopped or COMPLETE


def _notes(points: Sequence[Any], spec: BenchSpec, kv_bytes: int | None) -> tuple[str, ...]:
    told = []
    if kv_bytes is None:
        told.append("bytes and GB/s are left out: the model's config.json cannot be read in the engine.")
    pulled = [p for p in points if not spec.declined(p.point)]
    if PEER in spec.arms and pulled and all(p.stages is None for p in pulled):
        told.append("no stages: they need one request in flight, and both servers' logs at level INFO.")
    return tuple(told)
