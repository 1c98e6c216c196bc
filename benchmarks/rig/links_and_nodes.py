"""How cost grows with the link's speed and with the number of decode nodes, by `kvshare bench` on the rig.

make benchmarks ARGS="--part links --part nodes"
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.summary import summary
from benchmarks.tool import bench, run
from kvshare.servers.completion import Ask, Completion, complete
from kvshare.servers.prompts import make_prompts
from tests.rig import engines, network
from tests.rig.__main__ import settings_for
from tests.rig.network import DECODE, OPERATOR, PREFILL, Host
from tests.scenarios.under_faults.traffic import ADMITTED_S, CHUNK, MODEL, OUTPUT, VOCAB, Traffic

GBITS = (1, 10, 25)
NODES = (1, 2, 3)
LENGTHS = "266,1546"
TOKENS, ROUNDS = 522, 7
Prompt = tuple[int, ...]
ARMS = ("--arms", "cold,peer,recompute", "--repetitions", "5")


@contextmanager
def stack(decode_nodes: int, *overlays: Path) -> Iterator[dict[str, str]]:
    """The stack on the rig with that many decode nodes; gives the settings to reach it with."""
    settings = settings_for(decode_nodes)
    settings["COMPOSE_FILE"] = ":".join((settings["COMPOSE_FILE"], *map(str, overlays)))
    with engines.running(engines.HOSTS[: 1 + decode_nodes]):
        run("up", "all", environment={**os.environ, **settings})
        yield settings


def measure_links() -> dict[str, Any]:
    """One pair over cables of several speeds, and over one without a limit."""
    found: dict[str, Any] = {}
    with stack(1) as settings:
        for gbit in (*GBITS, 0):
            network.limit(DECODE, gbit * 1e9 / 8)
            found[str(gbit)] = summary(
                bench(*ARMS, "--prompt-tokens", LENGTHS, environment={**os.environ, **settings})
            )
    return found


def measure_nodes() -> dict[str, Any]:
    """One, two and three decode nodes, all pulling from the one prefill node at the same moment."""
    found: dict[str, Any] = {}
    for count in NODES:
        with (
            stack(count),
            ThreadPoolExecutor(count, initializer=network.enter, initargs=(OPERATOR,)) as clients,
        ):
            found[str(count)] = _all_at_once(engines.HOSTS[1 : 1 + count], clients)
    return found


def ask(
    traffic: Traffic, host: Host, prompt: Prompt, tokens: int = OUTPUT, shared: bool = True
) -> Completion:
    """A prompt's answer of so many tokens, from a thread in the operator's network."""
    asked = Ask(str(time.monotonic_ns()), prompt, tokens, shared=shared)
    return complete(traffic.http(host), MODEL, asked)


def _all_at_once(nodes: Sequence[Host], clients: ThreadPoolExecutor) -> dict[str, float]:
    """Median TTFT in ms over nodes and rounds, of prompts that prefill holds and of fresh ones, by arm."""
    traffic = Traffic(seed=len(nodes), addresses={host: host.address for host in (PREFILL, *nodes)})

    def ttft_ms(host: Host, prompt: Prompt) -> float:
        return ask(traffic, host, prompt).ttft_ms

    def pulled(host: Host) -> int:
        return traffic.sources(host).external_kv_transfer

    prompts = iter(make_prompts(2 * len(nodes) * (ROUNDS + 1), TOKENS, VOCAB, seed=len(nodes)))
    ttft: dict[str, list[float]] = {"recompute": [], "peer": []}
    for turn in range(-1, ROUNDS):  # the first warms up
        before = list(clients.map(pulled, nodes))
        of = {arm: list(islice(prompts, len(nodes))) for arm in ttft}
        list(clients.map(ttft_ms, [PREFILL] * len(nodes), of["peer"]))
        time.sleep(ADMITTED_S)
        for arm in ("peer", "recompute") if turn % 2 else ("recompute", "peer"):
            measured = list(clients.map(ttft_ms, nodes, of[arm]))
            ttft[arm] += measured if turn >= 0 else []
        moved = [now - then for now, then in zip(clients.map(pulled, nodes), before, strict=True)]
        if moved != [TOKENS // CHUNK * CHUNK] * len(nodes):
            sys.exit(
                f"{len(nodes)} decode nodes should have pulled one prompt each, and pulled {moved} tokens."
            )
    return {arm: median(values) for arm, values in ttft.items()}


def links(found: dict[str, Any]) -> list[str]:
    """Return the document's lines on link speed."""
    rows = []
    for gbit, run_ in found.items():
        for point in run_["points"]:
            peer, cold = (point["arms"][name]["ttft_ms"] for name in ("peer", "cold"))
            transfer, link = point["transfer"]["gb_per_s"], run_["link_gb_per_s"]
            cells = (
                f"{gbit} Gbit/s" if gbit != "0" else "no limit",
                f"{point['prompt_tokens']:,}", f"{cold:.0f}", f"{peer:.0f}", f"{peer / cold:.2f}",
                "–" if transfer is None else f"{transfer:.2f}",
                f"{link:.2f}" if link else "–",
            )  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return [
        "",
        "## By the speed of the link",
        "",
        "Two Docker engines of this machine (`make rig`), the cable limited by the kernel, medians of five.",
        "The last column is `ucx_perftest` on the same cable in the same run. Where the cable is the limit,",
        "KV was faster: there it understates, and `kvshare doctor` goes by it.",
        "",
        "| link | tokens | cold TTFT, ms | peer TTFT, ms | peer/cold | KV, GB/s | perftest, GB/s |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def nodes(found: dict[str, Any]) -> list[str]:
    """Return the document's lines on decode nodes."""
    rows = [
        f"| {count} | {one['recompute']:.0f} | {one['peer']:.0f} | {one['peer'] / one['recompute']:.2f} |"
        for count, one in found.items()
    ]
    return [
        "",
        "## By the number of decode nodes",
        "",
        f"All decode nodes pull from the one prefill node at the same moment, {TOKENS} tokens each; they all",
        f"share this machine's cores, so the ratio counts. Medians over the nodes and {ROUNDS} rounds.",
        "",
        "| decode nodes | recompute TTFT, ms | peer TTFT, ms | peer/recompute |",
        "|---|---|---|---|",
        *rows,
    ]
