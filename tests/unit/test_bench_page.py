"""The benchmark's pages: of one run, and of several beside each other.

The golden pages have their plots taken out; one plot is a golden file of its own. A browser looks at all of
them in tests/browser.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvshare import records
from kvshare.bench import charts, outputs, report
from kvshare.bench.results import Document, Link
from kvshare.cli import main
from tests.unit.bench_build import document

GOLDEN = Path(__file__).parent / "golden"
BEYOND = 18400.0
LONG = "ucx_perftest over 8 connections, UCX_TLS=tcp,cuda_copy UCX_NET_DEVICES=enp65s0f0np0"


def extrapolated(tokens: float = BEYOND) -> Document:
    found = document()
    assert found.cost is not None
    return replace(found, cost=replace(found.cost, break_even_tokens=tokens), link=Link(1.5, LONG))


def runs() -> list[tuple[str, Document]]:
    other = replace(extrapolated(), model=replace(document().model, name="another"), ended="interrupted")
    return [("monday", document()), ("tuesday", other)]


def figure(made: Document) -> charts.Figure:
    found = charts.ttft(made, "ttft", "TTFT", charts.frame([made]))
    assert found is not None
    return found


def golden(name: str, text: str, update: bool) -> None:
    kept = GOLDEN / name
    if update:
        kept.write_text(text)
    assert text == kept.read_text()


def without_plots(page: str) -> str:
    return re.sub(r"<svg.*?</svg>", "<svg/>", page, flags=re.DOTALL)


def test_the_page_of_one_run_is_the_golden_one(update_golden: bool) -> None:
    golden("bench-report.html", without_plots(report.html(document())), update_golden)


def test_the_page_of_several_runs_is_the_golden_one(update_golden: bool) -> None:
    golden("bench-runs.html", without_plots(report.html_of_runs(runs())), update_golden)


def test_a_plot_is_the_golden_one(update_golden: bool) -> None:
    golden("bench-ttft.svg", str(figure(document()).svg).replace("><", ">\n<") + "\n", update_golden)


def test_a_measured_break_even_is_drawn() -> None:
    drawn = figure(document())
    assert "break-even, 348 tokens" in dict(drawn.legend)
    assert "stroke-dasharray:6,4" in drawn.svg
    assert drawn.note is None


@pytest.mark.parametrize("tokens", [0.0, BEYOND])
def test_a_break_even_outside_the_measured_lengths_is_said_and_not_drawn(tokens: float) -> None:
    drawn = figure(extrapolated(tokens))
    assert not any("break-even" in name for name, _ in drawn.legend)
    assert "stroke-dasharray:6,4" not in drawn.svg
    assert drawn.note is not None
    assert f"Break-even at {tokens:,.0f} tokens is not drawn" in drawn.note


def test_an_arm_keeps_its_colour_when_others_are_missing() -> None:
    def colours(made: Document) -> dict[str, str]:
        return dict(figure(made).legend)

    points = document().points
    peer = [replace(r, arms=tuple(arm for arm in r.arms if arm.arm == "peer")) for r in points]
    alone = replace(document(), points=tuple(peer))
    assert colours(alone)["peer"] == colours(document())["peer"]


def test_a_legend_is_text_beside_the_plot_and_never_within_it() -> None:
    page = report.html(extrapolated())
    assert f"link ({LONG})</li>" in page
    assert all(LONG not in svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL))


def test_runs_beside_each_other_have_the_same_axes_and_their_ratios_in_one_plot() -> None:
    made = [("short", replace(document(), points=document().points[:2])), ("long", document())]
    page = report.html_of_runs(made)
    short, long = (re.findall(rf'<figure id="ttft-{n}"><svg.*?</svg>', page, re.DOTALL) for n in (1, 2))
    labels = [re.findall(r'<text [^>]*class="[^"]*">([\d.]+)</text>', svg) for svg in (*short, *long)]
    assert labels[0] == labels[1] != []
    assert '<figure id="ratios">' in page


def test_the_page_of_several_runs_says_in_what_they_differ() -> None:
    page = report.html_of_runs(runs())
    assert "tuesday beside monday: the models differ" in page
    assert "tuesday beside monday: tuesday is not complete: interrupted" in page
    assert "18,400, extrapolated" in page


def test_the_command_writes_one_page_of_several_runs_named_by_their_folders(tmp_path: Path) -> None:
    paths = [tmp_path / name / outputs.JSON for name in ("monday", "tuesday")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(records.dumps(document()))
    target = tmp_path / "runs.html"
    assert bench_report(*paths, target) == (0, "")
    assert target.read_text() == report.html_of_runs([(path.parent.name, document()) for path in paths])


def test_a_forgotten_page_overwrites_no_run(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        path.write_text(records.dumps(document()))
    code, said = bench_report(*paths)
    assert code == 2
    assert "b.json would be overwritten: name the page last" in said
    assert outputs.load(paths[1]) == document()


def bench_report(*paths: Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["bench", "report", *map(str, paths)])
    return result.exit_code, result.stderr
