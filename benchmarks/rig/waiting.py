"""What requests that wait for a pull cost one that generates, by how long LMCache sleeps in vLLM's scheduler.

make benchmarks ARGS="--part waiting"

One request generates on decode while others begin to pull over a slow cable. The time between its tokens
before they do, and until the first of them is answered.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks import ROOT
from benchmarks.rig.links_and_nodes import stack
from kvshare.servers.completion import Ask, Completion, complete
from kvshare.servers.prompts import make_prompts
from tests.rig import network
from tests.rig.network import DECODE, OPERATOR, PREFILL
from tests.scenarios.under_faults.traffic import ADMITTED_S, CHUNK, MODEL, VOCAB, Traffic

CONFIG = ROOT / "configs/lmcache.yaml"
SLEEPS_S = {"10 ms, upstream's": 0.01, "1 ms": 0.001, "none": 0.0}
WAITING = (1, 4, 8)
TOKENS, LINK_MBITS = 522, 500  # 14 MB of KV: eight pulls take two seconds
GENERATED, ALONE_S, ROUNDS = 450, 0.7, 5


def measure_waiting() -> dict[str, Any]:
    """Median time between tokens in ms by sleep and by how many wait; "0" is nobody."""
    return {name: _with_sleep(seconds) for name, seconds in SLEEPS_S.items()}


def _with_sleep(seconds: float) -> dict[str, float]:
    with _overlay(seconds) as overlay, stack(1, overlay):
        network.limit(DECODE, LINK_MBITS * 1e6 / 8)
        with ThreadPoolExecutor(1 + max(WAITING), initializer=network.enter, initargs=(OPERATOR,)) as clients:
            return _measured(clients)


def _measured(clients: ThreadPoolExecutor) -> dict[str, float]:
    traffic = Traffic(seed=int(time.time()))
    gaps: dict[str, list[float]] = {}

    def ask(tokens: tuple[int, ...], count: int, host: Any = DECODE, shared: bool = True) -> Completion:
        asked = Ask(str(time.monotonic_ns()), tokens, count, shared=shared)
        return complete(traffic.http(host), MODEL, asked)

    def pulled() -> int:
        return clients.submit(traffic.sources, DECODE).result().external_kv_transfer

    for turn in range(-1, ROUNDS):  # the first warms up
        for count in WAITING:
            seed = traffic.seed + 100 * turn + count
            first, *others = make_prompts(1 + count, TOKENS, VOCAB, seed=seed)
            list(clients.map(lambda prompt: ask(prompt, 1, PREFILL), others))
            time.sleep(ADMITTED_S)
            before_pulls = pulled()
            generating = clients.submit(ask, first[:200], GENERATED, shared=False)
            time.sleep(ALONE_S)
            pulls = [future.result() for future in [clients.submit(ask, one, 1) for one in others]]
            begun, ended = min(one.sent for one in pulls), min(one.token_times[0] for one in pulls)
            times = generating.result().token_times
            moved = pulled() - before_pulls
            if times[-1] < ended or moved != count * (TOKENS // CHUNK * CHUNK):
                sys.exit(
                    f"Beside one that outlasts them {count} pulls should be made, but {moved} tokens were."
                )
            for after, before in pairwise(reversed(times)):
                name = "0" if after < begun else str(count) if begun < before and after < ended else None
                if name and turn >= 0:
                    gaps.setdefault(name, []).append((after - before) * 1000)
    return {name: median(values) for name, values in gaps.items()}


@contextmanager
def _overlay(seconds: float) -> Iterator[Path]:
    """Both servers with LMCache's settings as they are, but for the sleep."""
    config = yaml.safe_load(CONFIG.read_text())
    config["extra_config"]["lookup_backoff_time"] = seconds
    folder = ROOT / ".kvshare/waiting"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lmcache.yaml").write_text(yaml.safe_dump(config))
    mount = {
        "type": "bind",
        "source": str(folder / "lmcache.yaml"),
        "target": "/etc/kvshare/lmcache.yaml",
        "read_only": True,
    }
    overlay = folder / "overlay.yaml"
    overlay.write_text(
        yaml.safe_dump({"services": {name: {"volumes": [mount]} for name in ("prefill", "decode")}})
    )
    yield overlay


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
