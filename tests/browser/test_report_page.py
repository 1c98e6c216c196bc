"""The benchmark's page in a real browser, Debian's headless Chromium, which is installed where apt has it."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from kvshare.bench import report
from tests.unit.bench_build import document

PACKAGE = "chromium-headless-shell"
WIDTH, HEIGHT = 1100, 3400
INSTALL_TIMEOUT_S = 400
# What the browser makes of each figure: its size on the page in pixels, and how much is drawn in it.
MEASURE = """<script>
const figures = {};
for (const figure of document.querySelectorAll("figure")) {
  const box = figure.querySelector("svg").getBoundingClientRect();
  figures[figure.id] = {width: box.width, height: box.height,
    shapes: figure.querySelectorAll("path, rect, circle").length};
}
const note = document.createElement("pre");
note.id = "measured";
note.textContent = JSON.stringify(figures);
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


def test_every_plot_is_drawn_and_nothing_is_fetched(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report.html(document()).replace("</body>", MEASURE + "</body>"))
    result = browse(browser, page, "--dump-dom")
    found = re.search(r'<pre id="measured">(.*?)</pre>', result.stdout)
    assert found is not None, result.stderr
    figures = json.loads(found.group(1))
    assert figures.keys() == {"ttft", "stages", "speed", "tbt"}
    for name, figure in figures.items():
        assert figure["width"] > 600, name
        assert figure["height"] > 200, name
        assert figure["shapes"] > 10, name
    assert "CONSOLE" not in result.stderr, "the page complains in the browser's console"
    assert "ERR_NAME_NOT_RESOLVED" not in result.stderr


def test_a_screenshot_shows_the_page(browser: str, tmp_path: Path) -> None:
    page, blank = tmp_path / "report.html", tmp_path / "blank.html"
    page.write_text(report.html(document()))
    blank.write_text("<!doctype html><title>blank</title>")
    shot, empty = screenshot(browser, page), screenshot(browser, blank)
    assert struct.unpack(">II", shot[16:24]) == (WIDTH, HEIGHT)
    assert len(shot) > 5 * len(empty)
