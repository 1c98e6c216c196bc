"""One self-contained HTML page of a benchmark: inline SVG by pygal, no script, nothing fetched."""

import re
from collections.abc import Iterator
from typing import Any

import pygal
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from pygal.style import Style

from kvshare.bench import outputs
from kvshare.bench.results import Document, PointResult
from kvshare.bench.spec import ARMS, MEANING
from kvshare.bench.stats import CURVE

_EXTRAS = re.compile(r"<script.*?</script>|<!--.*?-->", re.DOTALL)
_COLOURS = ("#c0392b", "#2980b9", "#8e44ad", "#27ae60", "#7f8c8d", "#d68910")


def html(document: Document) -> str:
    """Return the page."""
    loader = PackageLoader("kvshare.bench", "")
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template("report.html.j2").render(
        document=document,
        figures=tuple(_figures(document)),
        below=outputs.below,
        closing=outputs.closing(document),
        meaning=MEANING,
    )


def _figures(document: Document) -> Iterator[tuple[str, str, Markup]]:
    """Yield each plot that there is something to show in: its name, its title and its SVG."""
    for name, title, chart in (
        ("ttft", "Time to first token against prompt length", _ttft_chart(document)),
        ("stages", "Stages of a peer hit", _stages_chart(document)),
        ("speed", "KV transfer against the link", _speed_chart(document)),
        ("tbt", "Time between tokens", _tbt_chart(document)),
    ):
        if chart is not None:
            yield name, title, _svg(chart, name)


def _svg(chart: Any, name: str) -> Markup:
    """Return a chart as SVG alone: pygal adds a script for its tooltips and a comment with the date."""
    chart.uuid = name  # otherwise random, and the same run would give another page each time
    svg: str = chart.render(is_unicode=True)
    return Markup(_EXTRAS.sub("", svg[svg.index("<svg") :]))


def _options(**more: Any) -> dict[str, Any]:
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
    known = [(r, r.stages) for r in document.points if r.stages is not None]
    if not known:
        return None
    chart = pygal.HorizontalStackedBar(**_options(x_title="ms"))
    chart.x_labels = [r.point.label for r, _ in known]
    for place, (name, _) in enumerate(known[0][1].named):
        chart.add(name, [round(stages.named[place][1], 2) for _, stages in known])
    return chart


def _speed_chart(document: Document) -> Any | None:
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
