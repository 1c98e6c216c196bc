"""Time to first token of a prompt that is computed, in the server's own LMCache, or pulled from the peer.

The three alternate within one run, on fresh prompts, one request at a time; where the KV came from is counted
for every request, and a request that took it from elsewhere ends the measurement.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from kvshare.servers.completion import Ask, complete
from kvshare.servers.controller import ControllerClient
from kvshare.servers.prompts import TAIL, Prompt, make_prompts, reusable
from kvshare.servers.readings import Mark, Sources
from kvshare.servers.server import ServerClient
from kvshare.site.base import uncoloured
from kvshare.stack.members import Stack

CHUNK = 256
VOCAB = 259
ADMISSION_S = 20.0
SETTLE_S = 0.3  # for what the server does after its answer

_LINE = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})\] LMCache \w+: (.*)")
# A pull's milestones in order: what it is, whose log tells, the line.
MILESTONES = (
    ("the controller has answered decode's lookup", "decode", re.compile("Got layout info from controller")),
    ("the request is with the owner", "prefill", re.compile("Received P2P batched lookup and get msg")),
    ("the owner has written the KV", "prefill", re.compile("P2P transfer finished for request")),
    ("decode's scheduler has taken the request up", "decode", re.compile(r"LMCache hit tokens: \d+")),
    ("the KV is on the GPU", "decode", re.compile(r"Retrieved \d+ out of")),
)
FIRST_TOKEN = "the first token is at the client"


@dataclass
class Length:
    """What was measured at one prompt length: milliseconds, one item a repetition."""

    tokens: int
    cold: list[float] = field(default_factory=list)
    local: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Sent:
    """One answered request; times in seconds since 1970."""

    ttft_ms: float
    at: float
    sources: Sources


class Measurement:
    """Both servers, the controller, and the logs that tell a pull's milestones."""

    def __init__(self, stack: Stack, logs: dict[str, Path]) -> None:
        self.stack = stack
        self.logs = logs
        self.servers = {"prefill": ServerClient(stack.prefill.url), "decode": ServerClient(stack.decode.url)}
        self.controller = ControllerClient(
            stack.controller.url, stack.prefill.instance, CHUNK, stack.prefill.ranks
        )
        self.model = self.servers["prefill"].await_healthy(0).model or ""

    def run(self, chunks: Sequence[int], repetitions: int, seed: int) -> list[Length]:
        """Measure prompts of so many whole chunks and a tail; the first repetition of each warms up."""
        return [self._length(count * CHUNK + TAIL, repetitions, seed + count) for count in chunks]

    def _length(self, tokens: int, repetitions: int, seed: int) -> Length:
        length = Length(tokens)
        for number, prompt in enumerate(make_prompts(repetitions + 1, tokens, VOCAB, seed)):
            cold = self._cold(prompt, number)
            local, peer = self._hits(prompt, number)
            if number == 0:
                continue
            length.cold.append(cold.ttft_ms)
            length.local.append(local.ttft_ms)
            length.peer.append(peer.ttft_ms)
            length.stages.append(self._stages(peer))
        print(
            f"{tokens} tokens: cold {median(length.cold):.1f} ms, local {median(length.local):.1f} ms, "
            f"peer {median(length.peer):.1f} ms",
            flush=True,
        )
        return length

    def _cold(self, prompt: Prompt, number: int) -> Sent:
        before = self.controller.mark()
        sent = self._send("prefill", prompt, f"cold-{number}")
        _require(sent.sources == Sources(local_compute=len(prompt)), "cold", sent)
        self.await_admission(prompt, before)
        return sent

    def _hits(self, prompt: Prompt, number: int) -> tuple[Sent, Sent]:
        """Send the prompt again to both servers; who is first changes with every repetition."""
        expected = reusable(len(prompt), CHUNK)
        sent = {}
        for node in ("prefill", "decode") if number % 2 else ("decode", "prefill"):
            # Or vLLM's own prefix cache would answer, and LMCache would not be asked.
            self.servers["prefill"].http.post("/reset_prefix_cache", {})
            sent[node] = self._send(node, prompt, f"{node}-{number}")
            _require(sent[node].sources.external_kv_transfer == expected, node, sent[node])
        return sent["prefill"], sent["decode"]

    def _send(self, node: str, prompt: Prompt, name: str) -> Sent:
        server = self.servers[node]
        before = server.read()
        at = time.time()
        request = f"gpu-{len(prompt)}-{name}-{at:.0f}"
        answer = complete(server.http, self.model, Ask(request, prompt, max_tokens=1, logprobs=True))
        moved = server.await_counted(before, len(prompt))
        time.sleep(SETTLE_S)
        return Sent(answer.ttft_ms, at, (moved and moved.sources) or Sources())

    def await_admission(self, prompt: Prompt, before: Mark) -> None:
        """Wait until the controller knows the whole prompt at prefill; RuntimeError if it does not."""
        if not self.controller.await_admission([prompt], before, ADMISSION_S).how:
            raise RuntimeError(f"the controller does not know {len(prompt)} tokens at prefill")

    def _stages(self, sent: Sent) -> dict[str, float]:
        """Return when each milestone of a pull was passed, in ms from the request's sending."""
        lines = {node: _lines(self.logs[node], sent) for node in ("prefill", "decode")}
        passed = {}
        for name, node, pattern in MILESTONES:
            found = [at for at, text in lines[node] if pattern.search(text)]
            if found:
                passed[name] = (found[-1] - sent.at) * 1000
        return {**passed, FIRST_TOKEN: sent.ttft_ms}


def summary(lengths: Sequence[Length]) -> list[dict[str, Any]]:
    """Medians, ratios and the median of every milestone."""
    return [
        {
            "tokens": length.tokens,
            "repetitions": len(length.cold),
            **{leg: median(getattr(length, leg)) for leg in ("cold", "local", "peer")},
            "range": {
                leg: [min(getattr(length, leg)), max(getattr(length, leg))]
                for leg in ("cold", "local", "peer")
            },
            "peer_over_cold": median(length.peer) / median(length.cold),
            "local_over_cold": median(length.local) / median(length.cold),
            "stages": _medians(length.stages),
        }
        for length in lengths
    ]


def _medians(stages: Sequence[dict[str, float]]) -> dict[str, float]:
    names = [*(name for name, _, _ in MILESTONES), FIRST_TOKEN]
    # A milestone that one pull did not pass says nothing about the others.
    return {name: median(s[name] for s in stages) for name in names if all(name in s for s in stages)}


def _require(holds: bool, leg: str, sent: Sent) -> None:
    if not holds:
        raise RuntimeError(f"the {leg} request took its KV from elsewhere: {sent.sources}")


def _lines(log: Path, sent: Sent) -> list[tuple[float, str]]:
    """Return LMCache's lines of the time of one request, each with its seconds since 1970."""
    found = []
    for line in uncoloured(log.read_text(errors="replace")).splitlines():
        if match := _LINE.search(line):
            at = datetime.strptime(match.group(1), "%Y-%m-%d %H:%M:%S,%f").timestamp()
            if sent.at - 0.001 <= at <= sent.at + sent.ttft_ms / 1000 + 0.001:
                found.append((at, match.group(2)))
    return found
