"""Long work shown as it goes: a spinner or a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

PLAIN_INTERVAL_S = 30.0
PLAIN_TRANSFER_INTERVAL_S = 5.0


class Step:
    """One step under way; ``detail`` may be called as often as there is news."""

    def __init__(self, console: Console, title: str, *bars: ProgressColumn, total: int | None = None) -> None:
        self._console, self._title = console, title
        self._started = self._said = time.monotonic()
        description = TextColumn("{task.description}", markup=False)
        columns = (description, *bars) if bars else (SpinnerColumn(), description)
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=total)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def detail(self, text: str) -> None:
        line = f"{self._title} · {self.seconds:.0f} s · {text}"
        self._bar.update(self._task, description=line)
        self._say_at_times(line, PLAIN_INTERVAL_S)

    @contextmanager
    def under_way(self) -> Iterator[Self]:
        """Show it for as long as the block lasts, and at last what came of it."""
        if self._bar.disable:
            self._say(f"… {self._title}{self._about()}")
        with self._bar:
            yield self
        self._say(f"√ {self._title} ({self._outcome()})")

    def _about(self) -> str:
        return ""

    def _outcome(self) -> str:
        return f"{self.seconds:.0f} s"

    def _say_at_times(self, line: str, interval_s: float) -> None:
        if self._bar.disable and time.monotonic() - self._said >= interval_s:
            self._said = time.monotonic()
            self._say(line)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Transfer(Step):
    """Bytes under way: how many, how fast, how long still; the total may be an estimate."""

    def __init__(self, console: Console, title: str, total_bytes: int) -> None:
        columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        super().__init__(console, title, *columns, total=total_bytes)
        self._total = total_bytes
        self._first_byte: float | None = None
        self.sent_bytes = 0

    def advance(self, size_bytes: int) -> None:
        """Count bytes that have gone."""
        if self._first_byte is None:
            self._first_byte = time.monotonic()
            self._bar.update(self._task, description=self._title)
        self.sent_bytes += size_bytes
        # More than was estimated is no reason to show more than all.
        self._bar.update(self._task, completed=min(self.sent_bytes, self._total))
        self._say_at_times(f"… {self._title} · {self._so_far()}", PLAIN_TRANSFER_INTERVAL_S)

    def note(self, text: str) -> None:
        """Say what happens while no bytes go."""
        self._bar.update(self._task, description=f"{self._title} · {text}")
        self._say_at_times(f"… {self._title} · {text}", 0.0)

    def _about(self) -> str:
        return f" · about {decimal(self._total)}"

    def _outcome(self) -> str:
        return f"{decimal(self.sent_bytes)} in {self.seconds:.0f} s"

    def _so_far(self) -> str:
        moving_s = time.monotonic() - (self._first_byte or self._started)
        rate = max(1, int(self.sent_bytes / max(moving_s, 1e-3)))
        left_s = max(0, self._total - self.sent_bytes) / rate
        return (
            f"{decimal(self.sent_bytes)} of about {decimal(self._total)}, "
            f"{decimal(rate)}/s, about {left_s:.0f} s left"
        )


def step(title: str, console: Console | None = None) -> AbstractContextManager[Step]:
    """Narrate one step on stderr: its start, its news, and how long it took."""
    return Step(console or Console(stderr=True), title).under_way()


def transfer(
    title: str, total_bytes: int, console: Console | None = None
) -> AbstractContextManager[Transfer]:
    """Narrate a transfer on stderr: a bar on a terminal, elsewhere a line every few seconds."""
    return Transfer(console or Console(stderr=True), title, total_bytes).under_way()
