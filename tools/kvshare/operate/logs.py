"""`kvshare logs`: the logs of every node on every engine, merged by time, each line with its node's name."""

from __future__ import annotations

import heapq
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.text import Text

from kvshare.errors import CouldNotCheckError, KvshareError, did_you_mean
from kvshare.site import docker_cli, nodes
from kvshare.stack.members import Member, Stack

FOLLOW_WINDOW_S = 0.5  # how long a line waits for an older one of another node
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SINCE = re.compile(
    r"(\d+(\.\d+)?(ms|[smh]))+|\d{4}-\d{2}-\d{2}([T ][\d:.]+(Z|[+-]\d{2}:\d{2})?)?|\d{9,}(\.\d+)?"
)


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
    def arguments(self) -> list[str]:
        """Options of `docker logs`."""
        since = ["--since", self.since] if self.since else []
        return ["logs", "--timestamps", "--tail", str(self.tail), *since]


def members_of(stack: Stack, selection: Selection) -> tuple[Member, ...]:
    """Return the selected members; KvshareError if the node or the time is none."""
    names = [member.name for member in stack.members]
    if selection.node is not None and selection.node not in names:
        raise KvshareError(f"--node {selection.node} is no node{did_you_mean(selection.node, names)}")
    if selection.since is not None and not _SINCE.fullmatch(selection.since):
        raise KvshareError(
            f"--since {selection.since} is no time: give how long ago (90s, 10m, 2h) or a date "
            "(2026-11-24T10:00:00Z)."
        )
    return tuple(member for member in stack.members if selection.node in (None, member.name))


def read(stack: Stack, selection: Selection) -> tuple[list[Line], tuple[str, ...]]:
    """Return the lines merged by time, and a sentence for each engine whose lines are missing."""
    members = members_of(stack, selection)
    look = nodes.look(stack)
    running = {member.name: member for member in members if look.of(member) is not None}

    def one(name: str) -> list[Line]:
        member = running[name]
        return read_one(member, look.containers[member.context, member.service]["Id"], selection)

    found, errors = nodes.at_once(one, running)
    relevant = {member.context for member in members}
    unreachable = [error for context, error in look.errors.items() if context in relevant]
    return list(heapq.merge(*found.values())), (*unreachable, *errors.values())


def read_one(member: Member, container: str, selection: Selection) -> list[Line]:
    """Return the selected lines of one container; CouldNotCheckError if its engine does not give them."""
    command = docker_cli.command(member.context, *selection.arguments, container)
    try:
        # One pipe for both of the container's streams keeps their order.
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=docker_cli.TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise CouldNotCheckError(
            f"context {member.context}: {member.name}'s log did not come in {docker_cli.TIMEOUT_S:.0f} s."
        ) from None
    text = result.stdout.decode(errors="replace")
    if result.returncode != 0:
        raise CouldNotCheckError(
            f"context {member.context}: the log of {member.name}: {docker_cli.reason(text)}."
        )
    # Two streams of one container may still cross by some microseconds.
    return sorted(_parse(member.name, line) for line in text.splitlines() if line)


def _parse(node: str, line: str) -> Line:
    when, _, text = line.partition(" ")
    return Line(when, node, _ANSI.sub("", text.rstrip("\r")))


# Following


def follow(stack: Stack, selection: Selection, tell: Callable[[str], None]) -> Iterator[Line]:
    """Yield lines as they come, in order as far as a short window allows, until every log has ended.

    A log that ends, because its container or engine went away, is told in a sentence, as it happens.
    """
    members = members_of(stack, selection)
    look = nodes.look(stack)
    relevant = {member.context for member in members}
    for context, error in look.errors.items():
        if context in relevant:
            tell(error)
    followed = {m.name: (m, look.containers[m.context, m.service]["Id"]) for m in members if look.of(m)}
    processes = {
        name: _start_following(member, container, selection) for name, (member, container) in followed.items()
    }
    try:
        yield from _in_order(processes, tell)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def _start_following(member: Member, container: str, selection: Selection) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        docker_cli.command(member.context, *selection.arguments, "--follow", container),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _in_order(
    processes: Mapping[str, subprocess.Popen[bytes]], tell: Callable[[str], None]
) -> Iterator[Line]:
    """Yield lines of all processes; each waits a moment, so that an older one of another node can pass it."""
    arrived: queue.SimpleQueue[Line | str] = queue.SimpleQueue()
    for name, process in processes.items():
        threading.Thread(target=_pass_on, args=(name, process, arrived), daemon=True).start()
    waiting: list[tuple[Line, float]] = []
    left = len(processes)
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


def _pass_on(name: str, process: subprocess.Popen[bytes], arrived: queue.SimpleQueue[Line | str]) -> None:
    """Queue every line of a process, and at its end a sentence."""
    assert process.stdout is not None
    for raw in process.stdout:
        arrived.put(_parse(name, raw.decode(errors="replace").rstrip("\n")))
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

    def print_all(self, lines: Sequence[Line]) -> None:
        """Print lines in the order given."""
        for line in lines:
            self.print(line)
