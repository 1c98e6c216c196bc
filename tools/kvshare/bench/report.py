"""One self-contained HTML page of a benchmark: inline SVG by pygal, no script, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from kvshare.bench import outputs
from kvshare.bench.results import Document, PointResult
from kvshare.bench.spec import ARMS, MEANING
from kvshare.bench.stats import CURVE

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
h1 { font-size: 1.5rem }
h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: .85rem }
td, th { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
figure { margin: 1rem 0 }
svg { width: 100%; height: auto }
.verdict { font-weight: 600 }
dd, dt { display: inline; margin: 0 }
dt { font-weight: 600 }
"""
_EXTRAS = re.compile(r"<script.*?</script>|<!--.*?-->", re.DOTALL)
_COLOURS = ("#c0392b", "#2980b9", "#8e44ad", "#27ae60", "#7f8c8d", "#d68910")


def html(document: Document) -> str:
    """Return the page."""
    parts = [
        f"<h1>Benchmark of {escape(document.model.name)}</h1>",
        f'<p class="verdict" id="verdict">{escape(document.verdict)}</p>',
        f"<p>{escape(_about(document))}</p>",
        *_figures(document),
        "<h2>Figures</h2>",
        *(_point_table(result) for result in document.points),
        *_costs(document),
        "<h2>What ran</h2>",
        _fingerprint(document),
    ]
    title = f"kvshare, benchmark of {escape(document.started)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _about(document: Document) -> str:
    return (
        f"{document.started}, {document.seconds:.0f} s, {document.ended}; "
        f"{document.repetitions} repetitions, seed {document.seed}, chunks of {document.chunk_size} tokens"
    )


def _figures(document: Document) -> Iterable[str]:
    """Yield each plot that there is something to show in."""
    for name, title, chart in (
        ("ttft", "Time to first token against prompt length", _ttft_chart(document)),
        ("stages", "Stages of a peer hit", _stages_chart(document)),
        ("speed", "KV transfer against the link", _speed_chart(document)),
        ("tbt", "Time between tokens", _tbt_chart(document)),
    ):
        if chart is not None:
            yield f'<h2>{title}</h2>\n<figure id="{name}">{_svg(chart, name)}</figure>'


def _svg(chart: Any, name: str) -> str:
    """Return a chart as SVG alone: pygal adds a script for its tooltips and a comment with the date."""
    chart.uuid = name  # otherwise random, and the same run would give another page each time
    svg: str = chart.render(is_unicode=True)
    return _EXTRAS.sub("", svg[svg.index("<svg") :])


def _options(**more: Any) -> dict[str, Any]:
    from pygal.style import Style

    style = Style(
        background="transparent",
        plot_background="transparent",
        colors=_COLOURS,
        font_family="system-ui, sans-serif",
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=14,
        title_font_size=15,
    )
    return {
        "style": style,
        "js": [],  # pygal's own tooltips would be fetched from a server
        "disable_xml_declaration": True,
        "width": 900,
        "height": 420,
        "legend_at_bottom": True,
        "truncate_legend": -1,
        "truncate_label": -1,
        **more,
    }


def _ttft_chart(document: Document) -> Any | None:
    """TTFT medians of each arm over the lengths, one request in flight; n* as an upright line."""
    import pygal

    alone = [r for r in document.points if r.point.is_alone]
    output = min((r.point.output_tokens for r in alone), default=0)
    alone = [r for r in alone if r.point.output_tokens == output and r.point.shared_percent == 100]
    if not alone:
        return None
    chart = pygal.XY(**_options(x_title="prompt tokens", y_title="ms", dots_size=4))
    top = 0.0
    for name in ARMS:
        line = [
            (r.point.prompt_tokens, arm.ttft_ms.p50) for r in alone if (arm := r.arm(name)) and arm.ttft_ms
        ]
        if line:
            top = max(top, *(y for _, y in line))
            chart.add(name, line)
    if document.cost is not None and document.cost.break_even_tokens is not None:
        n = document.cost.break_even_tokens
        chart.add(f"n* = {n:,.0f} tokens", [(n, 0.0), (n, top)], stroke_style={"dasharray": "6, 4"})
    return chart


def _stages_chart(document: Document) -> Any | None:
    import pygal

    known = [(r, r.stages) for r in document.points if r.stages is not None]
    if not known:
        return None
    chart = pygal.HorizontalStackedBar(**_options(x_title="ms"))
    chart.x_labels = [r.point.label for r, _ in known]
    for place, (name, _) in enumerate(known[0][1].named):
        chart.add(name, [round(stages.named[place][1], 2) for _, stages in known])
    return chart


def _speed_chart(document: Document) -> Any | None:
    import pygal

    known = [
        (r.point.label, r.transfer.gb_per_s) for r in document.points if r.transfer and r.transfer.gb_per_s
    ]
    if not known:
        return None
    chart = pygal.Bar(**_options(y_title="GB/s"))
    chart.x_labels = [label for label, _ in known]
    chart.add("KV transfer", [speed for _, speed in known])
    if document.link.gb_per_s is not None:
        chart.add(f"link ({document.link.how})", [document.link.gb_per_s] * len(known))
    return chart


def _tbt_chart(document: Document) -> Any | None:
    """Each arm's distribution of gaps between tokens, at the point that pulled the most."""
    import pygal

    result = max(document.points, key=_gaps, default=None)
    if result is None or not _gaps(result):
        return None
    chart = pygal.XY(
        **_options(
            x_title=f"ms between tokens, {result.point.label}",
            y_title="percent of gaps at most",
            dots_size=2,
        )
    )
    for arm in result.arms:
        if arm.tbt_ms is not None:
            chart.add(arm.arm, list(zip(arm.tbt_ms.curve, CURVE, strict=True)))
    return chart


def _gaps(result: PointResult) -> int:
    return sum(arm.tbt_ms.count for arm in result.arms if arm.tbt_ms is not None)


def _point_table(result: PointResult) -> str:
    headings = (
        "arm", "requests", "TTFT p50 ms", "p90", "p99", "spread", "TBT p50", "TBT p99", "TPOT p50", "E2E p50",
        "req/s", "output tok/s",
    )  # fmt: skip
    rows = []
    for arm in result.arms:
        cells: list[object] = [arm.arm, arm.requests]
        for found, names in (
            (arm.ttft_ms, ("p50", "p90", "p99", "spread")),
            (arm.tbt_ms, ("p50", "p99")),
            (arm.tpot_ms, ("p50",)),
            (arm.e2e_ms, ("p50",)),
        ):
            cells += ["" if found is None else f"{getattr(found, name):.1f}" for name in names]
        cells += ["" if v is None else f"{v:.2f}" for v in (arm.request_throughput, arm.output_throughput)]
        rows.append(cells)
    notes = "".join(f"<p>{escape(note)}</p>" for note in (*outputs.below(result), *result.notes))
    return f"<h3>{escape(result.point.label)}</h3>{_html_table(headings, rows)}{notes}"


def _costs(document: Document) -> Iterable[str]:
    lines = (*outputs.cost_lines(document), *document.notes)
    if document.first_pull_ms is not None:
        lines = (*lines, f"first pull of the pair, not counted: {document.first_pull_ms:.0f} ms")
    if document.link.reason is not None:
        lines = (*lines, f"link: not measured, {document.link.reason}")
    yield from (f"<p>{escape(line)}</p>" for line in lines)
    yield "<h2>Arms</h2><dl>"
    yield from (f"<div><dt>{arm}</dt>: <dd>{escape(MEANING[arm])}</dd></div>" for arm in document.arms)
    yield "</dl>"


def _fingerprint(document: Document) -> str:
    rows = []
    for name, node in document.fingerprint.nodes.items():
        machine, nic = node.get("machine", {}), node.get("nic", {})
        rows.append(
            [
                name,
                ", ".join(f"{k} {v}" for k, v in node.get("versions", {}).items()),
                machine.get("gpu") or f"{machine.get('cores')} cores of {machine.get('cpu')}",
                nic.get("device", ""),
                ", ".join(f"{k}={v}" for k, v in node.get("ucx", {}).items()),
                str(node.get("image_id", ""))[:19],
            ]
        )
    table = _html_table(("node", "versions", "machine", "network", "UCX", "image"), rows)
    return (
        f"{table}<p>kvshare {escape(document.fingerprint.kvshare)}, {document.fingerprint.transport}, "
        f"configuration {document.fingerprint.configuration_hash[:16]}</p>"
    )


def _html_table(headings: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
