"""`kvshare status --html`: a stack at one moment, as one page that fetches nothing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kvshare import templates
from kvshare.site.base import Site
from kvshare.watch.top import NUMBERS, grid, lines, look

BETWEEN_LOOKS_S = 2.0


@dataclass(frozen=True)
class Grid:
    """A table of the page; the cells of a row stand under ``headings``."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def html(site: Site, well: bool, members: Grid) -> str:
    """Return the page: whether all is well, the members, and from two looks what the servers do just now."""
    before = look(site)
    time.sleep(BETWEEN_LOOKS_S)
    now = look(site)
    servers = Grid("What the servers do", ("node", *NUMBERS), grid(site.stack, before, now))
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return render(when, well, (members, servers), lines(site.stack, before, now))


def render(when: str, well: bool, grids: Sequence[Grid], said: Sequence[str]) -> str:
    """Return the page of these tables, and below them what else there is to say, a line each."""
    return templates.fill("kvshare.watch", "page.html.j2", when=when, well=well, grids=grids, lines=said)
