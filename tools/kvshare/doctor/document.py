"""A diagnosis for programs: the record that docs/doctor.schema.json is made from."""

from typing import Annotated

from msgspec import Meta, field

from kvshare.checking.document import Category, ExitCode, categories, each_check
from kvshare.contract import Interface, Ucx
from kvshare.doctor import evidence
from kvshare.doctor.judgement import Diagnosis
from kvshare.doctor.meaning import Meaning, meanings
from kvshare.records import Document, one_of

SCHEMA_VERSION = 1


class Node(Document):
    """A server's machine; what it could not be asked is null or empty."""

    host: str
    context: str
    engine: Annotated[str | None, Meta(description="Its Docker engine's version.")]
    image: Annotated[str | None, Meta(description="Id of the engine image there.")]
    error: Annotated[str | None, Meta(description="Why it could not be looked at.")]
    hostname: str | None
    cpus: int | None
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    memlock_bytes: Annotated[int | None, Meta(description="null: unlimited, or not known.")]
    interfaces: tuple[Interface, ...]
    ucx: Ucx | None
    versions: dict[str, str]
    gpus: evidence.Gpus | None


class Link(Document):
    """The way of KV to the peer that asks; ``meaning`` is null where it could not be measured."""

    source: str = field(name="from")
    target: str = field(name="to")
    bytes_per_s: float | None
    latency_s: float | None
    error: str | None
    meaning: Meaning | None


class Report(Document):
    """The whole diagnosis; nodes by the servers' names."""

    schema_version: Annotated[int, one_of(SCHEMA_VERSION)]
    ready: Annotated[bool, Meta(description="All checks were selected, none failed or could not be judged.")]
    exit: Annotated[ExitCode, Meta(description="0 nothing failed, 1 a check failed, 3 could not be judged.")]
    summary: Annotated[str, Meta(description="The table's last line.")]
    started: Annotated[str, Meta(description="ISO 8601, UTC.")]
    cause: Annotated[str | None, Meta(description="Id of the first failure in causal order.")]
    categories: tuple[Annotated[Category, each_check("^DOC-[A-Z]+-[0-9]+$")], ...]
    nodes: dict[str, Node]
    links: tuple[Link, ...]
    prefill_speed: evidence.PrefillSpeed | None


def report(diagnosis: Diagnosis) -> Report:
    """Return the diagnosis as docs/doctor.schema.json describes it."""
    seen = diagnosis.evidence
    return Report(
        schema_version=SCHEMA_VERSION,
        ready=diagnosis.exit_code == 0 and len(diagnosis.results) == len(diagnosis.registry),
        exit=diagnosis.exit_code,
        summary=diagnosis.sentence,
        started=seen.started,
        cause=diagnosis.cause.check.id if diagnosis.cause else None,
        categories=categories(diagnosis),
        nodes={node.name: _node(seen, node) for node in seen.nodes},
        links=tuple(_link(seen, link) for link in seen.links),
        prefill_speed=seen.prefill_speed,
    )


def _node(seen: evidence.Evidence, node: evidence.Node) -> Node:
    engine, facts = seen.engine(node.context), node.facts
    return Node(
        host=node.host,
        context=node.context,
        engine=engine.version or None,
        image=engine.image.id if engine.image else None,
        error=engine.error or node.error or None,
        hostname=facts.hostname if facts else None,
        cpus=facts.cpus if facts else None,
        memory_total_bytes=facts.memory_total if facts else None,
        memory_available_bytes=facts.memory_available if facts else None,
        memlock_bytes=facts.memlock if facts else None,
        interfaces=facts.interfaces if facts else (),
        ucx=facts.ucx if facts else None,
        versions=facts.versions if facts else {},
        gpus=node.gpus,
    )


def _link(seen: evidence.Evidence, link: evidence.Link) -> Link:
    meant = meanings(seen).get(link.target)
    return Link(
        source=link.source,
        target=link.target,
        bytes_per_s=link.bytes_per_s,
        latency_s=link.latency_s,
        error=link.error or link.not_tried or None,
        meaning=None if meant is None else meant[1],
    )
