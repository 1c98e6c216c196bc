"""A judgement for programs: the records that docs/verify.schema.json is made from."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from msgspec import Meta, convert

from kvshare.checking.document import Category, ExitCode, categories, each_check
from kvshare.checking.registry import ERROR, WARNING
from kvshare.records import Document, one_of
from kvshare.servers.prompts import reusable
from kvshare.servers.readings import Counters, Sources
from kvshare.verify import evidence, ledger
from kvshare.verify.checks.answers import answer_limit
from kvshare.verify.checks.verdict import Worth, worth
from kvshare.verify.evidence import CHANGED, LEGS, PEER, WARM_UP, Traffic
from kvshare.verify.judgement import Judgement, exit_code_of

SCHEMA_VERSION = 1
SERVICES = ("controller", "prefill", "decode", "coordinator", "prefill-cache", "decode-cache")
EACH_CHECK = each_check(
    "^[A-Z]+(-[A-Z]+)*-[0-9]{2}$",
    least=1,
    **{
        "if": {"properties": {"result": {"enum": [WARNING, ERROR]}}},
        "then": {"required": ["expected", "found", "where", "next", "hint"]},
    },
)

T = TypeVar("T")
Version = Annotated[int, one_of(SCHEMA_VERSION)]
Tokens = Annotated[int, Meta(ge=0)]
Milliseconds = Annotated[float, Meta(ge=0)]
LegName = Annotated[str, one_of(*LEGS)]
SentName = Annotated[str, one_of(*LEGS, CHANGED)]
ByLeg = Annotated[dict[LegName, T], Meta(min_length=len(LEGS))]
Exit = Annotated[ExitCode, Meta(description="0 nothing failed, 1 a check failed, 3 could not be judged.")]


class Leg(Document):
    """One request; times are from its sending to a chunk with a token."""

    prompt: Annotated[int, Meta(ge=0)]
    warm_up: Annotated[bool, Meta(description="Checked like all others; its time is left out.")]
    leg: SentName
    node: Annotated[str, one_of("prefill", "decode")]
    request_id: Annotated[str, Meta(description="Sent as X-Request-Id; the servers' logs hold it.")]
    tokens: Tokens
    ttft_ms: Annotated[Milliseconds | None, Meta(description="To the first.")]
    e2e_ms: Annotated[Milliseconds | None, Meta(description="To the last.")]
    sources: Sources | None
    error: str | None


class Ledger(Document):
    """Prompt tokens by source, summed by kind of leg, the warm-up included; what the counters rose by."""

    reusable_tokens: Annotated[Tokens, Meta(description="Of each prompt: its whole chunks.")]
    prompt_tokens: Annotated[Tokens, Meta(description="Of each prompt.")]
    sources: ByLeg[Sources]
    owner_transfers: Annotated[
        int | None,
        Meta(
            description="That prefill counted during the run; with SHARING=multiprocess objects handed out."
        ),
    ]
    owner_transfers_for_control: int | None
    decode_hit_tokens: int | None
    decode_requested_tokens: int | None


class Tolerance(Document):
    """Nats; docs/checks.md, Tolerance. ``noise`` is null if the honest legs cannot be compared."""

    limit: float
    floor: float
    noise: float | None


class Report(Document):
    """One decode node's; without traffic what follows from it is null."""

    schema_version: Version
    proven: Annotated[bool, Meta(description="Every check that is no mere warning was made and holds.")]
    exit: Exit
    summary: Annotated[str, Meta(description="The table's last line.")]
    started: Annotated[str, Meta(description="ISO 8601, UTC.")]
    seed: Annotated[int | None, Meta(description="Of the prompts.")]
    cause: Annotated[str | None, Meta(description="Id of the first failed check in causal order.")]
    categories: Annotated[
        tuple[Annotated[Category, EACH_CHECK], ...],
        Meta(description="In causal order; only those with a selected check."),
    ]
    legs: Annotated[tuple[Leg, ...], Meta(description="In the order in which they were sent.")]
    ledger: Ledger | None
    ttft_median_ms: Annotated[
        ByLeg[Milliseconds | None] | None, Meta(description="By kind of leg, the warm-up left out.")
    ]
    first_pull_ms: Annotated[Milliseconds | None, Meta(description="To the first token, in the warm-up.")]
    worth: Worth | None
    tolerance: Tolerance | None
    fingerprints: Annotated[
        dict[Annotated[str, one_of(*SERVICES)], dict[str, Any] | None],
        Meta(min_length=3, description="What each engine says of itself; null: not to be read."),
    ]


class Several(Document):
    """One report each of several decode nodes, by their names."""

    schema_version: Version
    proven: Annotated[bool, Meta(description="Whether reuse is proven on every decode node.")]
    exit: Exit
    nodes: Annotated[dict[str, Report], Meta(min_length=2)]


def document(judgements: Sequence[Judgement]) -> Report | Several:
    """Return the report of one decode node, or one that holds those of several."""
    if len(judgements) == 1:
        return report(judgements[0])
    return Several(
        schema_version=SCHEMA_VERSION,
        proven=all(judgement.proven for judgement in judgements),
        exit=exit_code_of(judgements),
        nodes={judgement.evidence.stack.decode.name: report(judgement) for judgement in judgements},
    )


def report(judgement: Judgement) -> Report:
    """Return one decode node's report."""
    seen, traffic = judgement.evidence, judgement.evidence.traffic
    return Report(
        schema_version=SCHEMA_VERSION,
        proven=judgement.proven,
        exit=judgement.exit_code,
        summary=judgement.sentence,
        started=seen.started,
        seed=traffic.spec.seed if traffic else None,
        cause=judgement.cause.check.id if judgement.cause else None,
        categories=categories(judgement),
        legs=convert(traffic.legs, tuple[Leg, ...], from_attributes=True) if traffic else (),
        ledger=_ledger(traffic) if traffic else None,
        ttft_median_ms={name: ledger.median_ttft_ms(traffic.legs, name) for name in LEGS}
        if traffic
        else None,
        first_pull_ms=first_pull_ms(traffic) if traffic else None,
        worth=worth(traffic) if traffic else None,
        tolerance=_tolerance(seen) if traffic else None,
        fingerprints={container.service: _fingerprint(container) for container in seen.containers},
    )


def first_pull_ms(traffic: Traffic) -> float | None:
    """Return the time to first token of the warm-up's pull, or None if it has none."""
    return next((leg.ttft_ms for leg in ledger.of(traffic.legs, PEER) if leg.prompt == WARM_UP), None)


def _ledger(traffic: Traffic) -> Ledger:
    return Ledger(
        reusable_tokens=reusable(traffic.spec.prompt_tokens, traffic.spec.chunk_size),
        prompt_tokens=traffic.spec.prompt_tokens,
        sources={name: ledger.total_sources(ledger.of(traffic.legs, name)) for name in LEGS},
        owner_transfers=_rise(traffic.owner_start, traffic.owner_end, "transfers"),
        owner_transfers_for_control=_rise(traffic.owner_start, traffic.owner_after_control, "transfers"),
        decode_hit_tokens=_rise(traffic.decode_start, traffic.decode_end, "hit_tokens"),
        decode_requested_tokens=_rise(traffic.decode_start, traffic.decode_end, "requested_tokens"),
    )


def _rise(start: Counters | None, end: Counters | None, name: str) -> int | None:
    return None if start is None or end is None else round(getattr(end, name) - getattr(start, name))


def _tolerance(seen: evidence.Evidence) -> Tolerance:
    limit = answer_limit(seen)
    noise = limit.noise if math.isfinite(limit.noise) else None
    return Tolerance(limit=limit.value, floor=limit.floor, noise=noise)


def _fingerprint(container: evidence.Container) -> dict[str, Any] | None:
    if container.fingerprint is None:
        return None
    return asdict(container.fingerprint) | {"patches": container.fingerprint.patch_ids}
