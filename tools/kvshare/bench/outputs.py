"""A benchmark's files (JSON, JSON lines of every request, CSV) and what the terminal shows."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvshare import records
from kvshare.bench.compare import Difference
from kvshare.bench.observed import Observed
from kvshare.bench.results import SCHEMA_VERSION, Against, Arm, Cost, Document, PointResult
from kvshare.bench.spec import WORTH_QUOTING
from kvshare.checking.rendering import table
from kvshare.cost.model import Pull
from kvshare.errors import KvshareError

JSON, LINES, CSV, REPORT = "bench.json", "requests.jsonl", "summary.csv", "report.html"
_LOAD = ("concurrency", "rate", "shared_percent", "load")
_COLUMNS = (
    *(f"point_{name}" for name in ("prompt_tokens", "output_tokens", *_LOAD)),
    "arm", "node", "repetitions", "requests", "prompt_tokens", "output_tokens", "request_throughput",
    "output_throughput", "total_throughput", "goodput", "queue_ms", "prefill_ms", "decode_ms",
    *(
        f"{times}_{figure}"
        for times in ("ttft_ms", "tbt_ms", "tpot_ms", "e2e_ms")
        for figure in ("count", "mean", "p50", "p90", "p99", "spread")
    ),
)  # fmt: skip


def load(path: Path) -> Document:
    """Read a bench.json; KvshareError if it is none, or of another version."""
    try:
        data = json.loads(path.read_text())
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {version}, this version reads {SCHEMA_VERSION}")
        return records.cls_from(Document, data)
    except OSError as error:
        raise KvshareError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise KvshareError(f"{path} is no benchmark that this version wrote: {error}.") from None


def write(folder: Path, document: Document, observed: Observed) -> None:
    """Write JSON, JSON lines and CSV into a folder, which is made; KvshareError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON).write_text(records.dumps(document, indent=1) + "\n")
        (folder / LINES).write_text("".join(request_lines(observed)))
        (folder / CSV).write_text(as_csv(document))
    except OSError as error:
        raise KvshareError(
            f"{folder} cannot be written to: {error.strerror}; choose another --out."
        ) from None


def request_lines(observed: Observed) -> Iterable[str]:
    """Yield every request that was sent as a line of JSON, counted or not."""
    points = observed.opening.points if observed.opening else ()
    for repetition in observed.repetitions:
        for run in repetition.arms:
            for request in run.requests:
                line = {
                    **{name: getattr(points[repetition.point], name) for name in _LOAD},
                    "point": repetition.point,
                    "repetition": repetition.number,
                    "arm": run.arm,
                    "counted": repetition.discarded is None and run.fault is None,
                    **asdict(request),
                    "tpot_ms": request.tpot_ms,
                }
                yield json.dumps(line) + "\n"


def as_csv(document: Document) -> str:
    """Return one line for each point and arm, every figure a column."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for result in document.points:
        for arm in result.arms:
            writer.writerow(dict(_flat({"point": asdict(result.point), **asdict(arm)})))
    return stream.getvalue()


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every figure of records within records, by the names of all of them."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}_")
        else:
            yield f"{prefix}{name}", value


# --- the terminal -------------------------------------------------------------------------------------------


def show(document: Document, console: Console) -> None:
    """Print the whole benchmark for a person."""
    for result in document.points:
        console.print(Text(result.point.label, "bold"))
        console.print(_table(result))
        for line in below(result):
            console.print(line)
        console.print()
    for line in closing(document):
        console.print(line)
    console.print(Text(document.verdict, "bold"))


def pull_words(pull: Pull) -> str:
    """Return the fitted cost of a pull in a few words."""
    speed = "any speed" if pull.bytes_per_s is None else f"{pull.bytes_per_s / 1e9:.2f} GB/s"
    return f"a pull: {pull.t0_s * 1000:.0f} ms + bytes / ({speed})"


def closing(document: Document) -> Iterator[str]:
    """Yield what is said of the run as a whole, a sentence each."""
    if document.first_pull_ms is not None:
        yield f"first pull of the pair, not counted: {document.first_pull_ms:.0f} ms"
    if document.link.reason is not None:
        yield f"link: not measured, {document.link.reason}"
    elif document.link.gb_per_s is not None:
        yield f"link: {document.link.gb_per_s:.2f} GB/s ({document.link.how})"
    if document.cost is not None:
        yield from _costs(document.cost)
    yield from document.notes


def _costs(found: Cost) -> Iterator[str]:
    yield f"{pull_words(found.pull)}, {found.pull.kv_bytes_per_token / 1024:.0f} KiB a token"
    yield (
        f"a prefill: {found.prefill.constant_s * 1000:.0f} ms + {found.prefill.linear_s * 1e6:.1f} µs·n "
        f"+ {found.prefill.quadratic_s * 1e9:.2f} ns·n²"
    )
    if found.break_even_tokens is not None:
        where = ", extrapolated" if found.extrapolated else ""
        yield (
            f"break-even at {found.break_even_tokens:,.0f} tokens{where} "
            f"(measured: {found.shortest:,} to {found.longest:,})"
        )


def _table(result: PointResult) -> Table:
    return _arms(result) if result.point.load is None else _ways(result)


def _ways(result: PointResult) -> Table:
    """Show the ways to send a load: latencies, throughput, and how many prompt tokens were computed."""
    shown = table(("way", "on"), ("n", "TTFT p50", "p99", "± ms", "TBT p99", "req/s", "computed"))
    for way in result.arms:
        if way.ttft_ms is None:
            shown.add_row(way.arm, way.node, "0")
            continue
        shown.add_row(
            way.arm,
            way.node,
            str(way.requests),
            *(f"{ms:.1f}" for ms in (way.ttft_ms.p50, way.ttft_ms.p99, way.ttft_ms.spread)),
            "" if way.tbt_ms is None else f"{way.tbt_ms.p99:.1f}",
            f"{way.request_throughput or 0:.2f}",
            f"{100 * way.sources.local_compute / way.prompt_tokens:.0f} %",
        )
    return shown


def _compared(one: Against, repetitions: int) -> str:
    """Return the gateway's figures against another way's, in a sentence."""
    quoted = repetitions >= WORTH_QUOTING

    def words(name: str) -> str:
        ratio = one.named[name]
        return f"{name} {ratio.value:.2f}" + (f" ({ratio.low:.2f} to {ratio.high:.2f})" if quoted else "")

    confidence = " with 95 % confidence" if quoted else ""
    return f"gateway over {one.way}{confidence}: {', '.join(map(words, one.named))}"


def _arms(result: PointResult) -> Table:
    numbers = (
        "n", "TTFT p50", "p90", "p99", "± ms", "TBT p50", "TPOT p50", "E2E p50", "req/s", "tok/s", "vs cold"
    )  # fmt: skip
    shown, cold = table(("arm", "on"), numbers), result.arm("cold")
    for arm in result.arms:
        shown.add_row(*_row(arm, cold))
    return shown


def _row(arm: Arm, cold: Arm | None) -> tuple[str, ...]:
    if arm.ttft_ms is None:
        return (arm.arm, arm.node, "0")
    ratio = f"{arm.ttft_ms.p50 / cold.ttft_ms.p50:.2f}" if cold and cold.ttft_ms else ""
    return (
        arm.arm,
        arm.node,
        str(arm.requests),
        f"{arm.ttft_ms.p50:.1f}",
        f"{arm.ttft_ms.p90:.1f}",
        f"{arm.ttft_ms.p99:.1f}",
        f"{arm.ttft_ms.spread:.1f}",
        *("" if d is None else f"{d.p50:.1f}" for d in (arm.tbt_ms, arm.tpot_ms, arm.e2e_ms)),
        *("" if v is None else f"{v:.2f}" for v in (arm.request_throughput, arm.output_throughput)),
        ratio,
    )


def _pulled(peer: Arm | None) -> bool:
    return peer is not None and peer.sources.external_kv_transfer > 0


def below(result: PointResult) -> Iterable[str]:
    """Yield what is said of a point below its table, a sentence each."""
    cold, peer = result.arm("cold"), result.arm("peer")
    if _pulled(peer) and peer and peer.prefill_ms is not None and cold and cold.prefill_ms is not None:
        decode = "" if peer.decode_ms is None else f"; decode time {peer.decode_ms:.0f} ms"
        yield (
            f"engine's prefill time: {cold.prefill_ms:.0f} ms cold, {peer.prefill_ms:.0f} ms after a pull: "
            f"{cold.prefill_ms - peer.prefill_ms:.0f} ms of the engine saved a request{decode}"
        )
    if (ratio := result.peer_over_recompute) is not None:
        quoted = result.repetitions >= WORTH_QUOTING
        between = f" ({ratio.low:.2f} to {ratio.high:.2f} with 95 % confidence)" if quoted else ""
        yield f"decode's first token, peer over recompute: {ratio.value:.2f}{between}"
    yield from (_compared(one, result.repetitions) for one in result.against)
    for arm in result.arms:
        if arm.goodput is not None:
            yield f"goodput, {arm.arm}: {arm.goodput:.2f} req/s"
    if (moved := result.transfer) is not None:
        size = "" if moved.bytes_per_pull is None else f", {moved.bytes_per_pull / 1e6:.1f} MB each"
        speed = "" if moved.gb_per_s is None else f", {moved.gb_per_s:.2f} GB/s"
        limit = "" if moved.of_link is None else f", {100 * moved.of_link:.0f} % of the link"
        times = f"{moved.pulls} of {moved.mean_ms:.1f} ms"
        yield f"KV transfer, by the owner's count: {times}{size}{speed}{limit}"
    if (found := result.stages) is not None:
        parts = " + ".join(f"{name} {value:.1f}" for name, value in found.named)
        yield (
            f"stages of a peer hit, ms: {parts} = {found.sum_ms:.1f}, "
            f"{100 * found.sum_over_ttft:.0f} % of TTFT {found.ttft_ms:.1f} (means of {found.requests})"
        )
    yield from result.notes


def show_comparison(differences: Iterable[Difference], warnings: Iterable[str], console: Console) -> None:
    """Print both runs' figures side by side."""
    shown = table(("point", "arm", "figure"), ("first", "second", "ratio", "spread"))
    shown.add_column("difference")
    for d in differences:
        shown.add_row(
            d.point.label,
            d.arm,
            f"{d.metric.removesuffix('_ms')} p50 ms",
            f"{d.first:.1f}",
            f"{d.second:.1f}",
            f"{d.ratio:.2f}",
            f"{d.spread:.1f}",
            "more than the spread" if d.exceeds_spread else "within the spread",
        )
    console.print(shown)
    for sentence in warnings:
        console.print(f"‼ {sentence}")
