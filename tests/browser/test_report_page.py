"""The benchmark's page in a real browser, Debian's headless Chromium, which is installed where apt has it."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvshare.bench import report
from tests.unit.bench_build import document
from tests.unit.test_bench_page import extrapolated, runs

PACKAGE = "chromium-headless-shell"
WIDTH, HEIGHT = 1100, 3400
WIDTHS = (390, 1280)  # a phone's, a desk's
INSTALL_TIMEOUT_S = 400
# What the browser makes of each figure: its size on the page in pixels, and how much is drawn in it.
MEASURE = """<script>
const figures = {};
for (const figure of document.querySelectorAll("figure")) {
  const box = figure.querySelector("svg").getBoundingClientRect();
  figures[figure.id] = {top: box.top, width: box.width, height: box.height,
    shapes: figure.querySelectorAll("path, rect, circle").length,
    right: Math.max(box.right, ...[...figure.querySelectorAll("svg text, li, p")].map(
      drawn => drawn.getBoundingClientRect().right))};
}
const note = document.createElement("pre");
note.id = "measured";
note.textContent = JSON.stringify({figures, page: document.documentElement.scrollWidth});
document.body.append(note);
</script>"""

pytestmark = pytest.mark.timeout(INSTALL_TIMEOUT_S + 60)


@pytest.fixture(scope="module")
def browser() -> str:
    """The browser's path; skips, with the reason, where there is none to be had."""
    if shutil.which(PACKAGE) is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip(f"{PACKAGE} is not installed, and only root with apt could install it")
        install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", PACKAGE, "fonts-dejavu-core")
        done = subprocess.run(install, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
        if done.returncode != 0:
            pytest.skip(f"apt has no {PACKAGE} here: {done.stderr.strip().splitlines()[-1:]}")
    return PACKAGE


def browse(browser: str, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page with no network at all."""
    command = (
        browser, "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr", f"--window-size={WIDTH},{HEIGHT}", *options, page.as_uri(),
    )  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=page.parent)


def screenshot(browser: str, page: Path) -> bytes:
    target = page.with_suffix(".png")
    result = browse(browser, page, f"--screenshot={target}")
    assert target.is_file(), result.stderr
    return target.read_bytes()


def measured(browser: str, page: Path, html: str, width: int) -> dict[str, Any]:
    """What the browser measures on a page, of which it complains nowhere and for which it fetches nothing."""
    page.write_text(html.replace("</body>", MEASURE + "</body>"))
    result = browse(browser, page, "--dump-dom", f"--window-size={width},900")
    found = re.search(r'<pre id="measured">(.*?)</pre>', result.stdout)
    assert found is not None, result.stderr
    assert "CONSOLE" not in result.stderr, "the page complains in the browser's console"
    assert "ERR_NAME_NOT_RESOLVED" not in result.stderr
    seen: dict[str, Any] = json.loads(found.group(1))
    return seen


@pytest.mark.parametrize("width", WIDTHS)
def test_every_plot_is_drawn_and_nothing_is_cut_off_or_fetched(
    browser: str, tmp_path: Path, width: int
) -> None:
    seen = measured(browser, tmp_path / "report.html", report.html(extrapolated()), width)
    assert seen["page"] <= width
    assert seen["figures"].keys() == {"ttft", "stages", "speed", "tbt"}
    for name, figure in seen["figures"].items():
        assert figure["width"] > 0.55 * width, name
        assert figure["height"] > 80, name
        assert figure["shapes"] > 10, name
        assert figure["right"] <= width, name


@pytest.mark.parametrize(("width", "columns"), [(390, 1), (1280, 2)])
def test_several_runs_stand_beside_each_other_where_there_is_room(
    browser: str, tmp_path: Path, width: int, columns: int
) -> None:
    seen = measured(browser, tmp_path / "runs.html", report.html_of_runs(runs()), width)
    assert seen["page"] <= width
    assert seen["figures"].keys() == {"ratios", "ttft-1", "ttft-2"}
    tops = {figure["top"] for name, figure in seen["figures"].items() if name != "ratios"}
    assert len(tops) == 3 - columns
    assert all(figure["right"] <= width for figure in seen["figures"].values())


def test_a_screenshot_shows_the_page(browser: str, tmp_path: Path) -> None:
    page, blank = tmp_path / "report.html", tmp_path / "blank.html"
    page.write_text(report.html(document()))
    blank.write_text("<!doctype html><title>blank</title>")
    shot, empty = screenshot(browser, page), screenshot(browser, blank)
    assert struct.unpack(">II", shot[16:24]) == (WIDTH, HEIGHT)
    assert len(shot) > 5 * len(empty)
