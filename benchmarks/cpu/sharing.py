"""LMCache in vLLM under a controller, and beside it as cache servers: both ways of sharing, in turn.

make benchmarks ARGS="--part sharing"
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks import ROOT
from benchmarks.memory import GIB, PeakMemory
from benchmarks.summary import summary
from benchmarks.tool import bench, run
from kvshare.bench.spec import COLD, PEER, RECOMPUTE
from kvshare.config.settings import CONTROLLER, MULTIPROCESS

sys.path.insert(0, str(ROOT / "docker"))

from guard.series import Patch, load_all

ORDER = (CONTROLLER, MULTIPROCESS, MULTIPROCESS, CONTROLLER)
LENGTHS = ("--prompt-tokens", "266,522,1034,1546")
CLIENTS = 16
LOAD = ("--prompt-tokens", "522", "--concurrency", str(CLIENTS))
ARMS = ("--arms", ",".join((COLD, PEER, RECOMPUTE)))
TAIL = 10  # tokens of each prompt that are no whole chunk
BESIDE = "mp-"  # how the patches are called that only cache servers need


@dataclass(frozen=True)
class Turn:
    """One start of the stack; points are ``summary``'s."""

    sharing: str
    start_s: float
    peak_bytes: float
    lengths: dict[str, Any]
    load: dict[str, Any]


def measure_sharing() -> dict[str, Any]:
    """Four starts of the stack on this machine, each measured alike, and the lines that each way needs."""
    turns = [asdict(_turn(sharing)) for sharing in ORDER]
    run("down", environment=_environment(CONTROLLER))
    return {"turns": turns, "lines": _lines()}


def _turn(sharing: str) -> Turn:
    environment = _environment(sharing)
    run("down", environment=environment)
    run("engine", "start")  # to end a stack ends an engine too that the tool has started
    began = time.monotonic()
    run("up", "all", environment=environment)
    start_s = time.monotonic() - began
    with PeakMemory() as peak:
        lengths = summary(bench(*LENGTHS, *ARMS, environment=environment))
        load = summary(bench(*LOAD, *ARMS, environment=environment))
    return Turn(sharing, start_s, peak.bytes, lengths, load)


def _environment(sharing: str) -> dict[str, str]:
    return {**os.environ, "DEVICE": "cpu", "SHARING": sharing}


def _lines() -> dict[str, int]:
    """Lines that our patches add to LMCache on a CPU, for either way alone."""
    every = [
        patch
        for series in load_all()
        for patch in series.of("cpu").patches
        if series.distribution == "lmcache"
    ]
    beside = sum(_added(patch) for patch in every if patch.id.startswith(BESIDE))
    return {MULTIPROCESS: beside, CONTROLLER: sum(map(_added, every)) - beside}


def _added(patch: Patch) -> int:
    lines = [line for line in patch.diff.splitlines() if line.startswith("+")]
    of_files = sum(line.startswith("+++") for line in lines)
    return len(lines) - of_files + sum(len(text.splitlines()) for text in patch.added.values())


def section(found: dict[str, Any]) -> list[str]:
    """Return the document's lines."""
    turns = found["turns"]

    def row(what: str, cell: Callable[[dict[str, Any]], str]) -> str:
        cells = (
            ", ".join(cell(t) for t in turns if t["sharing"] == way) for way in (CONTROLLER, MULTIPROCESS)
        )
        return f"| {what} | {' | '.join(cells)} |"

    lengths = [point["prompt_tokens"] for point in turns[0]["lengths"]["points"]]
    return [
        "",
        "## LMCache in vLLM, or beside it",
        "",
        "`SHARING=controller` and `SHARING=multiprocess` on one machine in the order "
        f"{', '.join(turn['sharing'] for turn in turns)}; two figures are the two starts. Times are "
        "`kvshare bench`'s medians.",
        "",
        "| | controller | multiprocess |",
        "|---|---|---|",
        *(
            row(f"TTFT, {arm}, {tokens:,} tokens, ms", partial(_ttft, index=index, arm=arm))
            for index, tokens in enumerate(lengths)
            for arm in (PEER, RECOMPUTE)
        ),
        row("fixed cost of a pull, ms", lambda turn: f"{_fit(turn).intercept:.0f}"),
        row("a pull's speed, copies included, GB/s", _speed),
        row(f"{CLIENTS} clients, peer, requests a second", _throughput),
        row("repetitions of it in which all was pulled", _whole),
        row("start of the stack, s", lambda turn: f"{turn['start_s']:.0f}"),
        row("peak memory, GiB", lambda turn: f"{turn['peak_bytes'] / GIB:.1f}"),
        "",
        f"Of the lines that our patches add to LMCache, {found['lines'][MULTIPROCESS]:,} are for cache "
        f"servers alone, and {found['lines'][CONTROLLER]:,} for all else.",
    ]


def _ttft(turn: dict[str, Any], index: int, arm: str) -> str:
    return f"{turn['lengths']['points'][index]['arms'][arm]['ttft_ms']:.0f}"


def _fit(turn: dict[str, Any]) -> statistics.LinearRegression:
    """Milliseconds to the first token over the tokens that were pulled for it."""
    points = [point for point in turn["lengths"]["points"] if PEER in point["arms"]]
    pulled = [point["prompt_tokens"] - TAIL for point in points]
    return statistics.linear_regression(pulled, [point["arms"][PEER]["ttft_ms"] for point in points])


def _speed(turn: dict[str, Any]) -> str:
    bytes_per_token, slope = turn["lengths"]["kv_bytes_per_token"], _fit(turn).slope
    return f"{bytes_per_token / slope / 1e6:.2f}" if bytes_per_token and slope > 0 else "–"


def _throughput(turn: dict[str, Any]) -> str:
    """Of the repetitions in which all was pulled, if there is one."""
    arms = turn["load"]["points"][0]["arms"]
    return f"{arms[PEER]['request_throughput']:.1f}" if PEER in arms else "–"


def _whole(turn: dict[str, Any]) -> str:
    (point,) = turn["load"]["points"]
    lost = sum(f", {PEER} not counted" in note for note in point["notes"])
    return f"{point['repetitions'] - lost} of {point['repetitions']}"
