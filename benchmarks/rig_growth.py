"""How cost grows with the link's speed and with the number of decode nodes, by `kvshare bench` on the rig.

make benchmarks ARGS="--part links --part nodes"
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from growth import bench, run  # noqa: E402  (beside this file)

from tests.rig import engines, network  # noqa: E402
from tests.rig.__main__ import settings_for  # noqa: E402
from tests.rig.network import DECODE  # noqa: E402

GBITS = (1, 10, 25)
NODES = (1, 2, 3)
LENGTHS = "266,1546"
ARMS = ("--arms", "cold,peer,recompute", "--repetitions", "5")


@contextmanager
def stack(decode_nodes: int) -> Iterator[dict[str, str]]:
    """The stack on the rig with that many decode nodes; gives the settings to reach it with."""
    settings = settings_for(decode_nodes)
    with engines.running(engines.HOSTS[: 1 + decode_nodes]):
        run("up", "all", environment={**os.environ, **settings})
        yield settings


def measure_links() -> dict[str, Any]:
    """One pair over cables of several speeds, and over one without a limit."""
    found: dict[str, Any] = {}
    with stack(1) as settings:
        for gbit in (*GBITS, 0):
            network.limit(DECODE, gbit * 1e9 / 8)
            found[str(gbit)] = bench(
                *ARMS, "--prompt-tokens", LENGTHS, environment={**os.environ, **settings}
            )
    return found


def measure_nodes() -> dict[str, Any]:
    """One, two and three decode nodes, all pulling from the one prefill node at the same time."""
    found: dict[str, Any] = {}
    for count in NODES:
        with stack(count) as settings, ThreadPoolExecutor(count) as threads:
            environment = {**os.environ, **settings}

            def one(number: int, environment: dict[str, str] = environment) -> dict[str, Any]:
                name = (
                    f"decode-{number}"
                    if len(environment.get("DECODE_HOSTS", "").split(",")) > 1
                    else "decode"
                )
                return bench(*ARMS, "--prompt-tokens", "522", "--node", name, environment=environment)

            found[str(count)] = list(threads.map(one, range(1, count + 1)))
    return found


def section(results: dict[str, Any]) -> list[str]:
    """Return the document's lines on link speed and nodes, of what was measured."""
    lines: list[str] = []
    if "links" in results:
        lines += _links(results["links"])
    if "nodes" in results:
        lines += _nodes(results["nodes"])
    return lines


def _links(found: dict[str, Any]) -> list[str]:
    rows = []
    for gbit, run_ in found.items():
        for point in run_["points"]:
            arms = {arm["arm"]: arm for arm in point["arms"]}
            peer, cold = (arms[name]["ttft_ms"]["p50"] for name in ("peer", "cold"))
            transfer = point["transfer"]["gb_per_s"]
            cells = (
                f"{gbit} Gbit/s" if gbit != "0" else "no limit",
                f"{point['point']['prompt_tokens']:,}", f"{cold:.0f}", f"{peer:.0f}", f"{peer / cold:.2f}",
                "–" if transfer is None else f"{transfer:.2f}",
                f"{run_['link']['gb_per_s']:.2f}" if run_["link"]["gb_per_s"] else "–",
            )  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return [
        "",
        "## By the speed of the link",
        "",
        "Two Docker engines of this machine (`make rig`), the cable limited by the kernel, medians of five.",
        "The last column is `ucx_perftest` on the same cable in the same run.",
        "",
        "| link | tokens | cold TTFT, ms | peer TTFT, ms | peer/cold | KV, GB/s | perftest, GB/s |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _nodes(found: dict[str, Any]) -> list[str]:
    rows = []
    for count, runs in found.items():
        by_arm: dict[str, list[float]] = {}
        for run_ in runs:
            for arm in run_["points"][0]["arms"]:
                by_arm.setdefault(arm["arm"], []).append(arm["ttft_ms"]["p50"])
        peer, again = median(by_arm["peer"]), median(by_arm["recompute"])
        rows.append(f"| {count} | {again:.0f} | {peer:.0f} | {peer / again:.2f} |")
    return [
        "",
        "## By the number of decode nodes",
        "",
        "All decode nodes pull from the one prefill node at the same time, each with one request in flight;",
        "all of them share this machine's cores, so the ratio counts. 522 tokens, medians over the nodes.",
        "",
        "| decode nodes | recompute TTFT, ms | peer TTFT, ms | peer/recompute |",
        "|---|---|---|---|",
        *rows,
    ]
