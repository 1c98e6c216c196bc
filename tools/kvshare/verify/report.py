"""A judgement for people (table, short) and for programs (json)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvshare.checking.rendering import by_category, plain_console, print_verdict, write_json
from kvshare.servers.prompts import reusable
from kvshare.verify import ledger
from kvshare.verify.checks.answers import answer_limit
from kvshare.verify.checks.verdict import worth
from kvshare.verify.evidence import CONTROL, LEGS, PEER, REFERENCE, WARM_UP, Traffic
from kvshare.verify.judgement import Judgement, exit_code_of

SCHEMA_VERSION = 1


def render(judgements: Sequence[Judgement], form: str, stream: TextIO) -> None:
    """Write the judgement of each decode node to ``stream`` as ``table``, ``short`` or ``json``.

    Colour only on a terminal. JSON is one report, or an object with one for each of several nodes.
    """
    if form == "json":
        write_json(_documents(judgements), stream)
        return
    console = plain_console(stream)
    for judgement in judgements:
        if len(judgements) > 1:
            node = judgement.evidence.stack.decode
            console.print(Text(f"=== {node.name} on {node.host} (context {node.context}) ===", "bold"))
        print_verdict(console, judgement, form, partial(_print_times, judgement.evidence.traffic))


def _print_times(traffic: Traffic | None, console: Console) -> None:
    if traffic is None:
        return
    cold = ledger.median_ttft_ms(traffic.legs, REFERENCE)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("time to first token")
    table.add_column("on")
    for heading in ("requests", "median ms", "vs cold"):
        table.add_column(heading, justify="right")
    for name in LEGS:
        legs = ledger.counted(ledger.of(traffic.legs, name))
        median = ledger.median_ttft_ms(traffic.legs, name)
        if median is not None:
            ratio = f"{median / cold:.2f}" if cold else ""
            table.add_row(_LEG_WORDS[name], legs[0].node, str(len(legs)), f"{median:.0f}", ratio)
    if table.row_count:
        console.print(table)
        if (first := first_pull_ms(traffic)) is not None:
            console.print(f"first pull of the pair, not counted: {first:.0f} ms")
        console.print(f"ledger: {ledger_sentence(traffic)}")
        console.print()


_LEG_WORDS = {
    "reference": "reference (cold)",
    "same split": "same split (own prefix cache)",
    "peer": "peer (pulled)",
    "control": "control (cold)",
}


def first_pull_ms(traffic: Traffic) -> float | None:
    """Return the time to first token of the warm-up's pull, or None if it has none."""
    return next((leg.ttft_ms for leg in ledger.of(traffic.legs, PEER) if leg.prompt == WARM_UP), None)


def ledger_sentence(traffic: Traffic) -> str:
    """Return where the prompt tokens of the peer and control legs came from, in one line."""
    return "; ".join(
        f"{name} {s.total} tokens = {s.local_compute} computed + {s.local_cache_hit} own cache "
        f"+ {s.external_kv_transfer} from the peer"
        for name, s in (
            (name, ledger.total_sources(ledger.of(traffic.legs, name))) for name in (PEER, CONTROL)
        )
    )


# --- json ---------------------------------------------------------------------------------------------------


def _documents(judgements: Sequence[Judgement]) -> dict[str, Any]:
    if len(judgements) == 1:
        return as_json(judgements[0])
    return {
        "schema_version": SCHEMA_VERSION,
        "proven": all(judgement.proven for judgement in judgements),
        "exit": exit_code_of(judgements),
        "nodes": {judgement.evidence.stack.decode.name: as_json(judgement) for judgement in judgements},
    }


def as_json(judgement: Judgement) -> dict[str, Any]:
    """Return the report as docs/verify.schema.json describes it."""
    evidence, traffic = judgement.evidence, judgement.evidence.traffic
    return {
        "schema_version": SCHEMA_VERSION,
        "proven": judgement.proven,
        "exit": judgement.exit_code,
        "summary": judgement.sentence,
        "started": evidence.started,
        "seed": traffic.spec.seed if traffic else None,
        "cause": judgement.cause.check.id if judgement.cause else None,
        "categories": by_category(judgement),
        "legs": _legs(traffic) if traffic else [],
        "ledger": _ledger(traffic) if traffic else None,
        "ttft_median_ms": {name: ledger.median_ttft_ms(traffic.legs, name) for name in LEGS}
        if traffic
        else None,
        "first_pull_ms": first_pull_ms(traffic) if traffic else None,
        "worth": _worth(traffic) if traffic else None,
        "tolerance": _tolerance(judgement),
        "fingerprints": {
            c.service: None
            if c.fingerprint is None
            else asdict(c.fingerprint) | {"patches": c.fingerprint.patch_ids}
            for c in evidence.containers
        },
    }


def _legs(traffic: Traffic) -> list[dict[str, Any]]:
    return [
        {
            "prompt": leg.prompt,
            "warm_up": leg.prompt == WARM_UP and leg.leg != CONTROL,
            "leg": leg.leg,
            "node": leg.node,
            "request_id": leg.request_id,
            "tokens": leg.tokens,
            "ttft_ms": leg.ttft_ms,
            "e2e_ms": leg.e2e_ms,
            "sources": None if leg.sources is None else vars(leg.sources),
            "error": leg.error,
        }
        for leg in traffic.legs
    ]


def _ledger(traffic: Traffic) -> dict[str, Any]:
    return {
        "reusable_tokens": reusable(traffic.spec.prompt_tokens, traffic.spec.chunk_size),
        "prompt_tokens": traffic.spec.prompt_tokens,
        "sources": {name: vars(ledger.total_sources(ledger.of(traffic.legs, name))) for name in LEGS},
        "owner_transfers": _rise(traffic.owner_start, traffic.owner_end, "transfers"),
        "owner_transfers_for_control": _rise(traffic.owner_start, traffic.owner_after_control, "transfers"),
        "decode_hit_tokens": _rise(traffic.decode_start, traffic.decode_end, "hit_tokens"),
        "decode_requested_tokens": _rise(traffic.decode_start, traffic.decode_end, "requested_tokens"),
    }


def _rise(start: Any, end: Any, name: str) -> int | None:
    return None if start is None or end is None else round(getattr(end, name) - getattr(start, name))


def _worth(traffic: Traffic) -> dict[str, Any] | None:
    verdict = worth(traffic)
    return None if verdict is None else vars(verdict)


def _tolerance(judgement: Judgement) -> dict[str, Any] | None:
    if judgement.evidence.traffic is None:
        return None
    limit = answer_limit(judgement.evidence)
    return {
        "limit": limit.value,
        "floor": limit.floor,
        "noise": limit.noise if math.isfinite(limit.noise) else None,
    }
