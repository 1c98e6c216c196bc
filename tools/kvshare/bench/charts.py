"""A benchmark's plots as inline SVG by pygal; their legends are text beside them, which breaks into lines."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pygal
from markupsafe import Markup
from pygal.style import Style

from kvshare.bench.results import Document, PointResult
from kvshare.bench.spec import ARMS
from kvshare.bench.stats import CURVE

_EXTRAS = re.compile(r"<script.*?</script>|<!--.*?-->", re.DOTALL)
COLOURS = ("#c0392b", "#2980b9", "#8e44ad", "#27ae60", "#7f8c8d", "#d68910")
_OF_ARM = dict(zip(ARMS, COLOURS, strict=False))  # an arm has its colour, whichever others there are
_BREAK_EVEN = COLOURS[-1]
_DASHED = {"stroke_style": {"dasharray": "6, 4"}, "show_dots": False}
WIDTH, HEIGHT, ROW = 600, 340, 26  # px; so small that letters are legible on a phone, which shows it all


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour: a value for each label of the plot, or points (x, y)."""

    name: str
    values: Sequence[Any]
    colour: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A plot: ``name`` is its id on the page, and ``note`` says what is not drawn."""

    name: str
    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...]
    note: str | None = None


@dataclass(frozen=True)
class Frame:
    """How far the axes of times to first token go: tokens from and to, and ms."""

    shortest: int
    longest: int
    top_ms: float


def draw(
    kind: type, name: str, title: str, series: Sequence[Series], note: str | None = None, **options: Any
) -> Figure:
    """Return a plot of one of pygal's kinds."""
    style = Style(
        background="transparent",
        plot_background="transparent",
        colors=tuple(one.colour for one in series),
        font_family="system-ui, sans-serif",
        label_font_size=14,
        major_label_font_size=14,
        title_font_size=15,
    )
    chart: Any = kind(
        style=style,
        js=[],  # pygal's own tooltips would be fetched from a server
        disable_xml_declaration=True,
        show_legend=False,  # pygal's does not break lines: what is long is cut off at the right edge
        truncate_label=-1,
        **{"width": WIDTH, "height": HEIGHT, **options},
    )
    chart.uuid = name  # otherwise random, and the same run would give another page each time
    for one in series:
        chart.add(one.name, one.values, **one.options)
    svg: str = chart.render(is_unicode=True)
    # pygal adds a script for its tooltips and a comment with the date.
    picture = Markup(_EXTRAS.sub("", svg[svg.index("<svg") :]))
    return Figure(name, title, picture, tuple((one.name, one.colour) for one in series), note)


def frame(documents: Sequence[Document]) -> Frame | None:
    """Return axes on which the times to first token of all of them have room, None if there are none."""
    spots = [spot for document in documents for line in _ttft_lines(document) for spot in line.values]
    if not spots:
        return None
    lengths = [tokens for tokens, _ in spots]
    return Frame(min(lengths), max(lengths), max(ms for _, ms in spots))


def ttft(document: Document, name: str, title: str, axes: Frame | None) -> Figure | None:
    """Draw TTFT medians of each arm over the lengths, one request in flight; n* as an upright line."""
    lines = _ttft_lines(document)
    if axes is None or not lines:
        return None
    cost, note = document.cost, None
    if cost is not None and (n := cost.break_even_tokens) is not None:
        if cost.extrapolated:
            note = (
                f"Break-even at {n:,.0f} tokens is not drawn: it follows from the fitted costs, "
                f"and {cost.shortest:,} to {cost.longest:,} tokens were measured."
            )
        else:
            upright = [(n, 0.0), (n, axes.top_ms)]
            lines.append(Series(f"break-even, {n:,.0f} tokens", upright, _BREAK_EVEN, _DASHED))
    return draw(
        pygal.XY, name, title, lines, note, x_title="prompt tokens", y_title="ms", dots_size=4,
        xrange=(axes.shortest, axes.longest), range=(0, axes.top_ms),
    )  # fmt: skip


def stages(document: Document) -> Figure | None:
    """Draw the stages of a peer hit, a bar for each point."""
    known = [(r, r.stages) for r in reversed(document.points) if r.stages is not None]  # from below
    if not known:
        return None
    series = [
        Series(name, [round(found.named[place][1], 2) for _, found in known], COLOURS[place])
        for place, (name, _) in enumerate(known[0][1].named)
    ]
    labels = [r.point.label for r, _ in known]
    return draw(
        pygal.HorizontalStackedBar, "stages", "Stages of a peer hit", series, x_title="ms", x_labels=labels,
        height=_height(len(known)),
    )  # fmt: skip


def speed(document: Document) -> Figure | None:
    """Draw the speed of the transfers beside the link's, two bars for each point."""
    known = [
        (r.point.label, r.transfer.gb_per_s)
        for r in reversed(document.points)
        if r.transfer and r.transfer.gb_per_s
    ]
    if not known:
        return None
    series = [Series("KV transfer", [speed for _, speed in known], COLOURS[0])]
    if (link := document.link).gb_per_s is not None:
        series.append(Series(f"link ({link.how})", [link.gb_per_s] * len(known), COLOURS[1]))
    return draw(
        pygal.HorizontalBar, "speed", "KV transfer against the link", series[::-1], x_title="GB/s",
        x_labels=[label for label, _ in known], height=_height(2 * len(known)),
    )  # fmt: skip


def tbt(document: Document) -> Figure | None:
    """Draw each arm's distribution of gaps between tokens, at the point that has the most."""
    result = max(document.points, key=_gaps, default=None)
    if result is None or not _gaps(result):
        return None
    series = [
        Series(arm.arm, list(zip(arm.tbt_ms.curve, CURVE, strict=True)), colour)
        for place, arm in enumerate(result.arms)
        if arm.tbt_ms is not None and (colour := _OF_ARM.get(arm.arm, COLOURS[place]))
    ]
    x_title = f"ms between tokens, {result.point.label}"
    return draw(
        pygal.XY, "tbt", "Time between tokens", series, x_title=x_title, y_title="percent of gaps at most",
        dots_size=2,
    )  # fmt: skip


def ratios(runs: Sequence[tuple[str, Document]]) -> Figure | None:
    """Draw, for each run, decode's time to first token with a pull over computing, against the length."""
    series = [
        Series(name, spots, COLOURS[place % len(COLOURS)])
        for place, (name, document) in enumerate(runs)
        if (spots := _ratios(document))
    ]
    if not series:
        return None
    lengths = [tokens for one in series for tokens, _ in one.values]
    highest = max(ratio for one in series for _, ratio in one.values)
    even = [(min(lengths), 1.0), (max(lengths), 1.0)]
    return draw(
        pygal.XY, "ratios", "First token from the peer over computing it",
        [*series, Series("as fast as computing", even, "#333333", {"show_dots": False})],
        x_title="prompt tokens", y_title="ratio", dots_size=4, range=(0, max(1.0, highest)),
    )  # fmt: skip


def _ttft_lines(document: Document) -> list[Series]:
    alone = [r for r in document.points if r.point.is_alone]
    output = min((r.point.output_tokens for r in alone), default=0)
    alone = [r for r in alone if r.point.output_tokens == output and r.point.shared_percent == 100]
    lines = (
        Series(name, [(r.point.prompt_tokens, r.ttft_ms(name)) for r in alone if r.arm(name)], _OF_ARM[name])
        for name in ARMS
    )
    return [line for line in lines if line.values]


def _ratios(document: Document) -> list[tuple[int, float]]:
    return [
        (result.point.prompt_tokens, ratio.value)
        for result in document.points
        if (ratio := result.peer_over_recompute) is not None and result.point.tells_costs
    ]


def _height(bars: int) -> int:
    """Return a plot's height that has room for so many bars beside the axis."""
    return 100 + ROW * max(3, bars)


def _gaps(result: PointResult) -> int:
    return sum(arm.tbt_ms.count for arm in result.arms if arm.tbt_ms is not None)
