"""Long work shown as it goes: a spinner with the latest detail on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

PLAIN_INTERVAL_S = 30.0


class Step:
    """One step under way; ``detail`` may be called as often as there is news."""

    def __init__(self, console: Console, title: str, status: Status | None) -> None:
        self._console, self._title, self._status = console, title, status
        self._started = self._printed = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def detail(self, text: str) -> None:
        line = f"{self._title} · {self.seconds:.0f} s · {text}"
        if self._status is not None:
            self._status.update(line[: self._console.width - 4])
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._printed = time.monotonic()
            self._say(line)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def step(title: str, console: Console | None = None) -> Iterator[Step]:
    """Narrate one step on stderr: its start, its news, and how long it took."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        with console.status(title) as status:
            current = Step(console, title, status)
            yield current
    else:
        current = Step(console, title, None)
        current._say(f"… {title}")
        yield current
    current._say(f"√ {title} ({current.seconds:.0f} s)")
