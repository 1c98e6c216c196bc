"""The page of `kvshare status --html` in a real browser, as wide as a phone and as a desk's screen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kvshare.operate.status import HEADINGS
from kvshare.watch.page import Grid, render
from kvshare.watch.top import NUMBERS
from tests.browser.test_report_page import INSTALL_TIMEOUT_S, browse
from tests.browser.test_report_page import browser as browser

MEASURE = """<script>
const note = document.createElement("pre");
note.id = "measured";
const cells = [...document.querySelectorAll("td")];
note.textContent = JSON.stringify({page: document.documentElement.scrollWidth, window: innerWidth,
  cells: cells.length, high: Math.max(...cells.map(cell => cell.getBoundingClientRect().height))});
document.body.append(note);
</script>"""
MEMBERS = ("controller", "prefill", "decode", "gateway", "prometheus", "canary")

pytestmark = pytest.mark.timeout(INSTALL_TIMEOUT_S + 60)


def page() -> str:
    """As wide as one can be: long names and large numbers."""
    where = (
        "192.168.110.130",
        "gpu-a-in-the-cellar",
        "running",
        "healthy",
        "12 d 3 h",
        "0123456789ab",
        "yes",
    )
    grids = (
        Grid("Members", HEADINGS, [(name, *where, "1234567") for name in MEMBERS]),
        Grid(
            "What the servers do",
            ("node", *NUMBERS),
            [(n, *["1,234,567"] * len(NUMBERS)) for n in MEMBERS[1:3]],
        ),
    )
    return render("2026-11-27 08:00:00 UTC", True, grids, ("canary of decode: proven, pulled in 30 ms",))


@pytest.mark.parametrize("width", [390, 1280])
def test_only_tables_are_wider_than_the_window_and_they_scroll(
    browser: str, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "status.html"
    path.write_text(page().replace("</body>", MEASURE + "</body>"))
    result = browse(browser, path, "--dump-dom", f"--window-size={width},900")
    found = re.search(r'<pre id="measured">(.*?)</pre>', result.stdout)
    assert found is not None, result.stderr
    seen = json.loads(found.group(1))
    assert seen["window"] == width
    assert seen["page"] <= width
    assert seen["cells"] == len(MEMBERS) * len(HEADINGS) + 2 * (1 + len(NUMBERS))
    assert seen["high"] < 60, "a cell is broken into many lines"
    assert "CONSOLE" not in result.stderr, "the page complains in the browser's console"
