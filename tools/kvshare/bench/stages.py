"""Where a peer hit's time to first token goes, from vLLM's counters and LMCache's log lines.

At one request in flight, with Q, P and S vLLM's own queue, prefill and first-token times of that request:

    decode's clock  queued ── controller answers ── KV is here ── scheduled ── KV copied ── first token
                    |<-------------------- Q ----------------------->|<----------- P ----------->|

    queue and lookup    Q - (scheduled - controller answers)
    transfer            the owner's own time from being asked to having written
    hand-over           (scheduled - controller answers) - transfer: asking the owner, waking the scheduler
    copy to the engine  LMCache's `Retrieved … cost`
    rest of prefill     P - copy: the tail, and sampling the first token
    front end           S - Q - P: tokenising, vLLM's processes handing over, the first chunk

What cannot be told apart: queue from lookup (LMCache logs no start of a lookup), and the first token's
sampling from the rest of the prefill. Only differences on one clock are used, so the machines' clocks may
disagree. The sum is S; how far it is from what the client measured is `sum_over_ttft`.

Sources: ``p2p_backend.py``, ``storage_manager.py``, ``cache_engine.py``, ``vllm_v1_adapter.py`` of LMCache
0.5.6 write the lines.
"""

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from kvshare.bench.observed import ArmRun

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TIME = r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})\] LMCache INFO: "
_ID = r"(?:cmpl-)?(kvbench-\d+-\d+-[a-z-]+-\d+)(?:-\d+)?(?:-[0-9a-f]+)?"
_LAYOUT = re.compile(_TIME + "Got layout info from controller")
_SCHEDULED = re.compile(_TIME + f"Reqid: {_ID}, Total tokens")
_COPIED = re.compile(_TIME + rf"\[req_id={_ID}\] Retrieved .*? cost ([\d.]+) ms")
_ASKED = re.compile(_TIME + f"Received P2P batched lookup and get msg, lookup_id: {_ID}")
_WRITTEN = re.compile(_TIME + "P2P transfer finished for request")


@dataclass(frozen=True)
class Stages:
    """Mean milliseconds of each stage over ``requests`` peer hits; they add up to ``sum_ms``."""

    requests: int
    queue_and_lookup_ms: float
    transfer_ms: float
    hand_over_ms: float
    copy_ms: float
    rest_of_prefill_ms: float
    front_end_ms: float
    sum_ms: float
    ttft_ms: float

    @property
    def sum_over_ttft(self) -> float:
        """The sum against what the client measured; within 5 % of 1, or something is not accounted for."""
        return self.sum_ms / self.ttft_ms

    @property
    def named(self) -> tuple[tuple[str, float], ...]:
        """The stages in order, with their names."""
        return (
            ("queue and lookup", self.queue_and_lookup_ms),
            ("transfer", self.transfer_ms),
            ("hand-over", self.hand_over_ms),
            ("copy to the engine", self.copy_ms),
            ("rest of prefill, first token", self.rest_of_prefill_ms),
            ("front end", self.front_end_ms),
        )


@dataclass(frozen=True)
class Moments:
    """What the logs say of one pull, in ms: controller's answer to scheduled, the copy, the transfer."""

    answered_to_scheduled_ms: float
    copy_ms: float
    transfer_ms: float


def read_moments(decode_log: str, owner_log: str) -> dict[str, Moments]:
    """Return by request id what both logs say; a pull of which any line is missing is left out."""
    decode_log, owner_log = (_ANSI.sub("", log) for log in (decode_log, owner_log))
    transfers = _transfers(owner_log)
    waits: dict[str, float] = {}
    copies: dict[str, float] = {}
    layout: datetime | None = None
    for line in decode_log.splitlines():
        if found := _LAYOUT.search(line):
            layout = _time(found.group(1))
        elif (found := _SCHEDULED.search(line)) and layout is not None:
            waits[found.group(2)] = _milliseconds(layout, _time(found.group(1)))
        elif found := _COPIED.search(line):  # by each rank, and the slowest is waited for
            copies[found.group(2)] = max(copies.get(found.group(2), 0.0), float(found.group(3)))
    known = waits.keys() & copies.keys() & transfers.keys()
    return {name: Moments(waits[name], copies[name], transfers[name]) for name in known}


def split(runs: Iterable[ArmRun], moments: Mapping[str, Moments]) -> Stages | None:
    """Return the stages of peer runs of one request each, or None if nothing is known of any of them."""
    rows = [row for run in runs if (row := _row(run, moments)) is not None]
    if not rows:
        return None
    count = len(rows)
    queue, transfer, hand_over, copy, rest, front, ttft = (
        sum(column) / count for column in zip(*rows, strict=True)
    )
    total = queue + transfer + hand_over + copy + rest + front
    return Stages(count, queue, transfer, hand_over, copy, rest, front, total, ttft)


def _row(run: ArmRun, moments: Mapping[str, Moments]) -> tuple[float, ...] | None:
    """Return one pull's stages and its time to first token, in ms."""
    if len(run.requests) != 1 or run.engine is None or round(run.engine.requests) != 1:
        return None
    (request,) = run.requests
    seen = moments.get(request.request_id)
    if seen is None or request.ttft_ms is None:
        return None
    queue, prefill, server = (1000 * s for s in (run.engine.queue_s, run.engine.prefill_s, run.engine.ttft_s))
    # The log's clock shows whole milliseconds, so a stage of next to nothing may come out below zero.
    lookup = max(0.0, queue - seen.answered_to_scheduled_ms)
    hand_over = max(0.0, queue - lookup - seen.transfer_ms)
    return (
        lookup,
        seen.transfer_ms,
        hand_over,
        seen.copy_ms,
        prefill - seen.copy_ms,
        server - queue - prefill,
        request.ttft_ms,
    )


def _transfers(owner_log: str) -> dict[str, float]:
    """Return by request id how long the owner's slowest rank took, at one request in flight."""
    found: dict[str, float] = {}
    asked: deque[tuple[str, datetime]] = deque()
    for line in owner_log.splitlines():
        if match := _ASKED.search(line):
            if asked and asked[0][0] != match.group(2):
                asked.clear()  # what was never written
            asked.append((match.group(2), _time(match.group(1))))
        elif (match := _WRITTEN.search(line)) and asked:
            name, since = asked.popleft()
            found[name] = max(found.get(name, 0.0), _milliseconds(since, _time(match.group(1))))
    return found


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f")


def _milliseconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() * 1000
