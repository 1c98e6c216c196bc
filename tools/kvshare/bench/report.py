"""Self-contained HTML pages of one benchmark and of several: inline SVG, no script, nothing fetched."""

from collections.abc import Sequence
from typing import Any

from kvshare import templates
from kvshare.bench import charts, outputs
from kvshare.bench.compare import warnings
from kvshare.bench.results import Document
from kvshare.bench.spec import MEANING


def html(document: Document) -> str:
    """Return the page of one benchmark."""
    title = "Time to first token against prompt length"
    figures = (
        charts.ttft(document, "ttft", title, charts.frame([document])),
        charts.stages(document),
        charts.speed(document),
        charts.tbt(document),
    )
    return _page("report.html.j2", document=document, figures=figures, below=outputs.below, meaning=MEANING)


def html_of_runs(runs: Sequence[tuple[str, Document]]) -> str:
    """Return the page of several benchmarks, each with its name: plots side by side, on the same axes."""
    axes = charts.frame([document for _, document in runs])
    first_name, first = runs[0]
    differences = [
        f"{name} beside {first_name}: {sentence}"
        for name, document in runs[1:]
        for sentence in warnings(first, document, (first_name, name))
    ]
    figures = [
        charts.ttft(document, f"ttft-{number}", name, axes)
        for number, (name, document) in enumerate(runs, start=1)
    ]
    return _page(
        "runs.html.j2", runs=runs, figures=figures, ratios=charts.ratios(runs), differences=differences
    )


def _page(template: str, figures: Sequence[charts.Figure | None], **more: Any) -> str:
    """Return a page with those figures that there is something to show in."""
    drawn = [figure for figure in figures if figure is not None]
    return templates.fill("kvshare.bench", template, figures=drawn, closing=outputs.closing, **more)
