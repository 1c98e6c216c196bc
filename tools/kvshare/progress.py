"""Long work shown as it goes: a spinner or a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.status import Status

PLAIN_INTERVAL_S = 30.0
PLAIN_TRANSFER_INTERVAL_S = 5.0


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


class Transfer:
    """Bytes under way: how many, how fast, how long still; the total may be an estimate."""

    def __init__(self, console: Console, title: str, total_bytes: int) -> None:
        self._console, self._title, self._total = console, title, total_bytes
        self._started = self._printed = time.monotonic()
        self._first_byte: float | None = None
        self._bar: tuple[Progress, TaskID] | None = None
        self.sent_bytes = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def rate(self) -> int:
        """Bytes a second since the first of them."""
        moving = time.monotonic() - (self._first_byte or self._started)
        return int(self.sent_bytes / max(moving, 1e-3))

    def advance(self, size_bytes: int) -> None:
        """Count bytes that have gone."""
        if self._first_byte is None:
            self._first_byte = time.monotonic()
            if self._bar is not None:
                self._bar[0].update(self._bar[1], description=self._title)
        self.sent_bytes += size_bytes
        if self._bar is not None:
            # More than was estimated is no reason to show more than all.
            self._bar[0].update(self._bar[1], completed=min(self.sent_bytes, self._total))
        elif time.monotonic() - self._printed >= PLAIN_TRANSFER_INTERVAL_S:
            self._printed = time.monotonic()
            self._say(f"… {self._title} · {self._so_far()}")

    def note(self, text: str) -> None:
        """Say what happens while no bytes go."""
        if self._bar is not None:
            self._bar[0].update(self._bar[1], description=f"{self._title} · {text}")
        else:
            self._say(f"… {self._title} · {text}")

    def _so_far(self) -> str:
        left = max(0, self._total - self.sent_bytes) / max(self.rate, 1)
        return (
            f"{decimal(self.sent_bytes)} of about {decimal(self._total)}, "
            f"{decimal(self.rate)}/s, about {left:.0f} s left"
        )

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def transfer(title: str, total_bytes: int, console: Console | None = None) -> Iterator[Transfer]:
    """Narrate a transfer on stderr: a bar on a terminal, elsewhere a line every few seconds."""
    console = console or Console(stderr=True)
    current = Transfer(console, title, total_bytes)
    if console.is_terminal:
        columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn()
        with Progress(
            *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True
        ) as progress:
            current._bar = progress, progress.add_task(title, total=total_bytes)
            yield current
    else:
        current._say(f"… {title} · about {decimal(total_bytes)}")
        yield current
    current._say(f"√ {title} ({decimal(current.sent_bytes)} in {current.seconds:.0f} s)")
