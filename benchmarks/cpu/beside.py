"""What a short pull takes while another node pulls a long prompt of the same owner; three nodes without vLLM.

    .venv/bin/python -m benchmarks.cpu.beside           prints JSON; needs the image engine-cpu
    make benchmarks ARGS="--part beside"               and writes it into docs/benchmarks.md

As `benchmarks.cpu.pulls`, CPU to CPU over loopback. The short pull begins when a quarter of the long one's
own time has passed, and counts if the long one ended later.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.cpu import pulls

SHORT, LONG, ROUNDS = 4, 64, 40  # chunks: 1,024 and 16,384 tokens
WIDTH, PAGES = 2048, 80  # 16 KiB of KV a token
SEED_OF_SHORT, SEED_OF_LONG = 1, 2
BEGINS = 0.25  # of the long pull's own time


def measure_beside() -> dict[str, Any]:
    """Return medians in ms: each pull by itself, and both while the other is under way."""
    load = os.getloadavg()[0]
    seconds = pulls.in_container("benchmarks.cpu.beside", "both", pulls.our_extra())
    found: dict[str, Any] = {name: statistics.median(values) * 1000 for name, values in seconds.items()}
    return {
        **found,
        "short_ratio": found["short_beside"] / found["short"],
        "long_ratio": found["long_beside"] / found["long"],
        "counted": len(seconds["short_beside"]),
        "rounds": ROUNDS,
        "load_before": load,
    }


def section(found: dict[str, Any]) -> list[str]:
    """Return the lines of docs/benchmarks.md."""
    rows = (
        (f"{SHORT * pulls.CHUNK:,}", "short"),
        (f"{LONG * pulls.CHUNK:,}", "long"),
    )
    return [
        "",
        "## A short pull beside a long one",
        "",
        "Two nodes pull from one owner, CPU to CPU over loopback without vLLM (`benchmarks/cpu/beside.py`):",
        f"the short pull begins while the long one is under way, in {found['counted']} of {found['rounds']} "
        f"rounds; medians. Load average {found['load_before']:.1f} before.",
        "",
        "| tokens | by itself | beside the other | ratio |",
        "|---|---|---|---|",
        *(
            f"| {tokens} | {found[name]:.1f} ms | {found[name + '_beside']:.1f} ms "
            f"| {found[name + '_ratio']:.2f} |"
            for tokens, name in rows
        ),
    ]


# --- inside the container -----------------------------------------------------------------------------------


def _both(extra: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of each pull, alone and beside the other."""
    sys.path.insert(0, "/src/docker")
    from probes.controller import free_ports, running_controller
    from probes.node import running_node, settings_for

    ports = free_ports()
    sizes: dict[str, Any] = {"chunk": pulls.CHUNK, "width": WIDTH, "pages": PAGES, "extra": extra}
    with (
        running_controller(ports),
        running_node(settings_for("owner", ports, **sizes)) as owner,
        running_node(settings_for("quick", ports, **sizes)) as quick,
        running_node(settings_for("slow", ports, **sizes)) as slow,
        ThreadPoolExecutor(1) as thread,
    ):
        for node in (owner, quick, slow):
            node.wait_until_synced(ports)
        owner.ask("store", seed=SEED_OF_SHORT, chunks=SHORT)
        owner.ask("store", seed=SEED_OF_LONG, chunks=LONG)
        time.sleep(3.0)  # admission, and some heartbeats

        def short(turn: str) -> float:
            return pulls.pulled_s(quick, SEED_OF_SHORT, SHORT, f"short-{turn}")

        def long(turn: str) -> float:
            return pulls.pulled_s(slow, SEED_OF_LONG, LONG, f"long-{turn}")

        found: dict[str, list[float]] = {"short": [], "long": [], "short_beside": [], "long_beside": []}
        short("warm-up")
        long("warm-up")
        for turn in range(ROUNDS):
            found["short"].append(short(f"{turn}-alone"))
            found["long"].append(long(f"{turn}-alone"))
            under_way = thread.submit(long, f"{turn}-beside")
            time.sleep(BEGINS * statistics.median(found["long"]))
            took = short(f"{turn}-beside")
            over = under_way.done()
            beside = under_way.result()
            if not over:
                found["short_beside"].append(took)
                found["long_beside"].append(beside)
    return found


if __name__ == "__main__":
    print(json.dumps(_both(json.loads(sys.argv[2])) if sys.argv[1:] else measure_beside(), indent=None))
