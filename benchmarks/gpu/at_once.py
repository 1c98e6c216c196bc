"""Several decode nodes that pull at the same moment from the one prefill node: one prompt, or one each."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import median
from typing import Any

from benchmarks.gpu.measure import CHUNK, VOCAB, Measurement
from kvshare.servers.completion import Ask, complete
from kvshare.servers.prompts import Prompt, make_prompts, reusable
from kvshare.servers.server import ServerClient
from kvshare.stack.members import Stack

SEED = 11


@dataclass(frozen=True)
class Together:
    """Median milliseconds to the first token over nodes and rounds, of that many nodes that ask at once."""

    tokens: int
    nodes: int
    recompute_ms: float
    each_its_own_ms: float
    all_the_same_ms: float
    pulled: bool  # whether every prompt came whole from prefill, by the decode nodes' own counts


def run(stack: Stack, lengths: Sequence[int], rounds: int) -> tuple[dict[str, Any], bool]:
    """Measure every length on one node, then two, up to all."""
    first = Measurement(stack, {})
    nodes = [ServerClient(decode.url) for decode in stack.decodes]
    found = [
        _together(first, nodes[:count], tokens, rounds)
        for tokens in lengths
        for count in range(1, 1 + len(nodes))
    ]
    return {"rounds": rounds, "points": [asdict(one) for one in found]}, all(one.pulled for one in found)


def _together(first: Measurement, nodes: list[ServerClient], tokens: int, rounds: int) -> Together:
    count = len(nodes)
    prompts = iter(make_prompts((2 * count + 1) * (rounds + 1), tokens, VOCAB, SEED + tokens + count))
    times: dict[str, list[float]] = {"recompute": [], "own": [], "same": []}
    pulled = True
    with ThreadPoolExecutor(count) as clients:
        ask = _asker(first)
        for turn in range(-1, rounds):  # the first warms up
            of = {"recompute": list(islice(prompts, count)), "own": list(islice(prompts, count))}
            of["same"] = [next(prompts)] * count
            for prompt in {*of["own"], *of["same"]}:
                before = first.controller.mark()
                ask(first.servers["prefill"], prompt)
                first.await_admission(prompt, before)
            for arm in sorted(of, reverse=bool(turn % 2)):
                readings = [node.read() for node in nodes]
                took = list(clients.map(ask, nodes, of[arm]))
                due = 0 if arm == "recompute" else reusable(tokens, CHUNK)
                for node, before_it in zip(nodes, readings, strict=True):
                    moved = node.await_counted(before_it, tokens)
                    got = moved.sources.external_kv_transfer if moved and moved.sources else None
                    pulled &= got == due
                times[arm] += took if turn >= 0 else []
    ms = {arm: median(taken) for arm, taken in times.items()}
    return Together(tokens, count, ms["recompute"], ms["own"], ms["same"], pulled)


def _asker(first: Measurement) -> Callable[[ServerClient, Prompt], float]:
    def ask(server: ServerClient, prompt: Prompt) -> float:
        return complete(server.http, first.model, Ask(f"at-once-{time.monotonic_ns()}", prompt, 1)).ttft_ms

    return ask
