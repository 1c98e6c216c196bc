"""What requests that wait for a pull cost one that generates, by how long LMCache sleeps in vLLM's scheduler.

make benchmarks ARGS="--part waiting"

One request generates on decode while others begin to pull over a slow cable. The time between its tokens
before they do, and until the first of them is answered.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks import ROOT
from benchmarks.rig.links_and_nodes import Prompt, ask, stack
from kvshare.servers.prompts import make_prompts
from tests.rig import network
from tests.rig.network import DECODE, OPERATOR, PREFILL
from tests.scenarios.under_faults.traffic import ADMITTED_S, CHUNK, VOCAB, Traffic

CONFIG = ROOT / "configs/lmcache.yaml"
SLEEPS_S = {"10 ms, upstream's": 0.01, "1 ms": 0.001, "none": 0.0}
WAITING = (1, 4, 8)
TOKENS, LINK_MBITS = 522, 500  # 14 MB of KV: eight pulls take two seconds
GENERATED, ALONE_S, ROUNDS = 450, 0.7, 5


def measure_waiting() -> dict[str, Any]:
    """Median time between tokens in ms by sleep and by how many wait; "0" is nobody."""
    return {name: _with_sleep(seconds) for name, seconds in SLEEPS_S.items()}


def _with_sleep(seconds: float) -> dict[str, float]:
    with stack(1, _overlay(seconds)):
        network.limit(DECODE, LINK_MBITS * 1e6 / 8)
        with ThreadPoolExecutor(1 + max(WAITING), initializer=network.enter, initargs=(OPERATOR,)) as clients:
            return _measured(clients)


def _measured(clients: ThreadPoolExecutor) -> dict[str, float]:
    traffic = Traffic(seed=1)
    prompts = iter(make_prompts((1 + ROUNDS) * sum(1 + count for count in WAITING), TOKENS, VOCAB, seed=1))
    gaps: dict[str, list[float]] = {str(count): [] for count in (0, *WAITING)}
    for turn in range(-1, ROUNDS):
        for count in WAITING:
            alone, beside = _gaps_ms(traffic, clients, next(prompts), list(islice(prompts, count)))
            if turn >= 0:  # the first warms up
                gaps["0"] += alone
                gaps[str(count)] += beside
    return {name: median(values) for name, values in gaps.items()}


def _gaps_ms(
    traffic: Traffic, clients: ThreadPoolExecutor, prompt: Prompt, others: list[Prompt]
) -> tuple[list[float], list[float]]:
    """Times between one request's tokens before others begin to pull, and until one of them is served."""

    def pulled() -> int:
        return clients.submit(traffic.sources, DECODE).result().external_kv_transfer

    list(clients.map(partial(ask, traffic, PREFILL), others))
    time.sleep(ADMITTED_S)
    before = pulled()
    generating = clients.submit(ask, traffic, DECODE, prompt[:200], GENERATED, shared=False)
    time.sleep(ALONE_S)
    pulls = list(clients.map(partial(ask, traffic, DECODE), others))
    times, moved = generating.result().token_times, pulled() - before
    begun, served = min(one.sent for one in pulls), min(one.token_times[0] for one in pulls)
    if times[-1] < served or moved != len(others) * (TOKENS // CHUNK * CHUNK):
        sys.exit(
            f"Beside one that outlasts them {len(others)} pulls should be made, but {moved} tokens were."
        )
    alone = [(end - start) * 1000 for start, end in pairwise(times) if end < begun]
    beside = [(end - start) * 1000 for start, end in pairwise(times) if begun < start and end < served]
    return alone, beside


def _overlay(seconds: float) -> Path:
    """Both servers with LMCache's settings as they are, but for the sleep."""
    config = yaml.safe_load(CONFIG.read_text())
    config["extra_config"]["lookup_backoff_time"] = seconds
    folder = ROOT / ".kvshare/waiting"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lmcache.yaml").write_text(yaml.safe_dump(config))
    mount = f"{folder}/lmcache.yaml:/etc/kvshare/lmcache.yaml:ro"
    overlay = folder / "overlay.yaml"
    overlay.write_text(
        yaml.safe_dump({"services": {name: {"volumes": [mount]} for name in ("prefill", "decode")}})
    )
    return overlay


def section(found: dict[str, Any]) -> list[str]:
    """Return the lines of docs/benchmarks.md."""
    counts = ("0", *map(str, WAITING))
    return [
        "",
        "## While others wait for their pulls",
        "",
        "The time between the tokens of a request that generates on decode, while others pull",
        f"{TOKENS:,} tokens each over a cable of {LINK_MBITS} Mbit/s; median in ms. LMCache sleeps in vLLM's",
        "scheduler, once a step for each that waits (`lookup_backoff_time`), unless it is told not to.",
        "",
        f"| sleep | {' | '.join('nobody waits' if one == '0' else f'{one} wait' for one in counts)} |",
        f"|---|{'---|' * len(counts)}",
        *(
            f"| {name} | {' | '.join(f'{arms[one]:.1f}' for one in counts)} |"
            for name, arms in found.items()
        ),
    ]  # fmt: skip
