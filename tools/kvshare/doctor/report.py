"""A diagnosis for people (table, short) and for programs (json)."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from kvshare.checking.rendering import by_category, plain_console, print_verdict, write_json
from kvshare.doctor.evidence import Evidence, Node
from kvshare.doctor.judgement import Diagnosis
from kvshare.doctor.meaning import meanings

SCHEMA_VERSION = 1


def render(diagnosis: Diagnosis, form: str, stream: TextIO) -> None:
    """Write the diagnosis to ``stream`` as ``table``, ``short`` or ``json``; colour only on a terminal."""
    if form == "json":
        write_json(as_json(diagnosis), stream)
        return
    print_verdict(plain_console(stream), diagnosis, form, partial(_print_links, diagnosis.evidence))


def _print_links(evidence: Evidence, console: Console) -> None:
    meant = meanings(evidence)
    if not meant:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("KV's way", no_wrap=True)
    for heading in ("GB/s", "µs", "KiB/token", "longest prompt", "in the timeout", "pays from"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, (link, m) in meant.items():
        table.add_row(
            name,
            f"{(link.bytes_per_s or 0) / 1e9:.2f}",
            f"{(link.latency_s or 0) * 1e6:.0f}",
            f"{m.token_bytes / 1024:g}",
            f"{m.longest_s:.2f} s",
            f"{m.fits_tokens} tokens",
            "never" if m.break_even is None else f"{m.break_even} tokens",
        )
    console.print(table)
    console.print()


# --- json ---------------------------------------------------------------------------------------------------


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the diagnosis as docs/doctor.schema.json describes it."""
    evidence = diagnosis.evidence
    return {
        "schema_version": SCHEMA_VERSION,
        "ready": diagnosis.exit_code == 0 and len(diagnosis.results) == len(diagnosis.registry),
        "exit": diagnosis.exit_code,
        "summary": diagnosis.sentence,
        "started": evidence.started,
        "cause": diagnosis.cause.check.id if diagnosis.cause else None,
        "categories": by_category(diagnosis),
        "nodes": {node.name: _node(evidence, node) for node in evidence.nodes},
        "links": [_link(evidence, number) for number in range(len(evidence.links))],
        "prefill_speed": None if evidence.prefill_speed is None else asdict(evidence.prefill_speed),
    }


def _node(evidence: Evidence, node: Node) -> dict[str, Any]:
    engine, facts = evidence.engine(node.context), node.facts
    return {
        "host": node.host,
        "context": node.context,
        "engine": engine.version or None,
        "image": engine.image.id if engine.image else None,
        "error": engine.error or node.error or None,
        "hostname": facts.hostname if facts else None,
        "cpus": facts.cpus if facts else None,
        "memory_total_bytes": facts.memory_total if facts else None,
        "memory_available_bytes": facts.memory_available if facts else None,
        "memlock_bytes": facts.memlock if facts else None,
        "interfaces": [asdict(interface) for interface in facts.interfaces] if facts else [],
        "ucx": asdict(facts.ucx) if facts else None,
        "versions": facts.versions if facts else {},
        "gpus": asdict(node.gpus) if node.gpus else None,
    }


def _link(evidence: Evidence, number: int) -> dict[str, Any]:
    link = evidence.links[number]
    meant = meanings(evidence).get(link.target)
    return {
        "from": link.source,
        "to": link.target,
        "bytes_per_s": link.bytes_per_s,
        "latency_s": link.latency_s,
        "error": link.error or link.not_tried or None,
        "meaning": None if meant is None else asdict(meant[1]),
    }
