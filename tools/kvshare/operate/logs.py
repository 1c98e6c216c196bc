"""`kvshare logs`: the logs of every node on every engine, merged by time, each line with its node's name."""

import heapq
import queue
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from kvshare.errors import KvshareError, did_you_mean
from kvshare.site.base import at_once
from kvshare.site.containers import Containers
from kvshare.site.engine import Following, engine
from kvshare.stack.members import Member, Stack

FOLLOW_WINDOW_S = 0.5  # how long a line waits for an older one of another node
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_AGO = re.compile(r"(\d+(?:\.\d+)?)(ms|[smh])")


@dataclass(frozen=True, order=True)
class Line:
    """One line; lines are ordered by the time at which their engine read them, nothing else."""

    when: str
    node: str = field(compare=False)
    text: str = field(compare=False)


@dataclass(frozen=True)
class Selection:
    """Which lines: a node's (None: all), the last how many of each, since when (in `docker logs`' words)."""

    node: str | None = None
    tail: int = 100
    since: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What an engine is told; KvshareError if ``since`` is no time."""
        since = {} if self.since is None else {"since": _seconds(self.since)}
        return {"timestamps": True, "tail": self.tail, **since}


def _seconds(since: str) -> float:
    """Return seconds since 1970 of a time, or of how long ago it was."""
    if re.fullmatch(rf"({_AGO.pattern})+", since):
        return time.time() - sum(float(number) * _UNITS[unit] for number, unit in _AGO.findall(since))
    try:
        return (
            float(since)
            if re.fullmatch(r"\d{9,}(\.\d+)?", since)
            else datetime.fromisoformat(since).timestamp()
        )
    except ValueError:
        raise KvshareError(
            f"--since {since} is no time: give how long ago (90s, 10m, 2h) or a date (2026-11-24T10:00:00Z)."
        ) from None


def members_of(stack: Stack, selection: Selection) -> tuple[Member, ...]:
    """Return the selected members; KvshareError if the node or the time is none."""
    names = [member.name for member in stack.members]
    if selection.node is not None and selection.node not in names:
        raise KvshareError(f"--node {selection.node} is no node{did_you_mean(selection.node, names)}")
    _ = selection.options
    return tuple(member for member in stack.members if selection.node in (None, member.name))


def read(site: Containers, selection: Selection) -> tuple[list[Line], tuple[str, ...]]:
    """Return the lines merged by time, and a sentence for each engine whose lines are missing."""
    there = _there(site)
    found, errors = at_once(lambda name: read_one(site, there[name], selection), there)
    failed = (*site.silent.values(), *errors.values())
    return list(heapq.merge(*found.values())), tuple(error.message for error in failed)


def read_one(site: Containers, member: Member, selection: Selection) -> list[Line]:
    """Return the selected lines of one container; CouldNotCheckError if its engine does not give them."""
    text = engine(member.context).log(site.container(member), **selection.options)
    # Two streams of one container may cross by some microseconds.
    return sorted(_parse(member.name, line) for line in text.split("\n") if line)


def _there(site: Containers) -> dict[str, Member]:
    found = site.look()
    return {member.name: member for member in site.members if member.name in found}


def _parse(node: str, line: str) -> Line:
    when, _, text = line.partition(" ")
    return Line(when, node, text.rstrip("\r"))


# Following


def follow(
    site: Containers, selection: Selection, tell: Callable[[str], None]
) -> Generator[Line, None, None]:
    """Yield lines as they come, in order as far as a short window allows, until every log has ended.

    A log that ends, because its container or engine went away, is told in a sentence, as it happens.
    """
    there = _there(site)
    for error in site.silent.values():
        tell(error.message)
    followed = {
        name: engine(member.context).follow(site.container(member), **selection.options)
        for name, member in there.items()
    }
    try:
        yield from _in_order(followed, tell)
    finally:
        for log in followed.values():
            log.close()


def _in_order(followed: Mapping[str, Following], tell: Callable[[str], None]) -> Iterator[Line]:
    """Yield lines of all logs; each waits a moment, so that an older one of another node can pass it."""
    arrived: queue.SimpleQueue[Line | str] = queue.SimpleQueue()
    for name, log in followed.items():
        threading.Thread(target=_pass_on, args=(name, log, arrived), daemon=True).start()
    waiting: list[tuple[Line, float]] = []
    left = len(followed)
    while left or waiting:
        try:
            item = arrived.get(timeout=FOLLOW_WINDOW_S / 5)
            if isinstance(item, Line):
                heapq.heappush(waiting, (item, time.monotonic()))
            else:
                left -= 1
                tell(item)
        except queue.Empty:
            pass
        while waiting and (not left or time.monotonic() - waiting[0][1] >= FOLLOW_WINDOW_S):
            yield heapq.heappop(waiting)[0]


def _pass_on(name: str, log: Following, arrived: queue.SimpleQueue[Line | str]) -> None:
    """Queue every line of a log, and at its end a sentence."""
    for line in log:
        arrived.put(_parse(name, line))
    arrived.put(f"the log of {name} has ended: its container or its engine went away.")


# Printing


class Printer:
    """Prints lines with their node's name, on a terminal in a colour of its own unless NO_COLOR is set."""

    def __init__(self, stack: Stack, stream: TextIO) -> None:
        names = [member.name for member in stack.members]
        self._width = max(map(len, names))
        self._colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
        self._stream = stream
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def print(self, line: Line) -> None:
        """Print one line as ``time node text``."""
        name = f"{line.node:<{self._width}}"
        if self._console.is_terminal:
            colour = self._colours[line.node]
            self._console.print(Text.assemble((line.when, "dim"), " ", (name, colour), " ", line.text))
        else:
            self._stream.write(f"{line.when} {name} {line.text}\n")
            self._stream.flush()
