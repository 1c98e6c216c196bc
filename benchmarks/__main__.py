"""Measure kvshare on this machine and write docs/benchmarks.md.

make benchmarks                          everything that a running Docker engine allows
make benchmarks ARGS="--part verify"     one part; the others keep what was last measured
make benchmarks ARGS="--part growth"     `kvshare bench` on the stack that is up, over lengths and loads
make benchmarks ARGS="--part links"      the same over cables of several speeds, on two engines (make rig)
make benchmarks ARGS="--part nodes"      and with one, two and three decode nodes
make benchmarks ARGS="--part load"       16 clients that share half of each prompt
make benchmarks ARGS="--part never-slower"  the calibrated threshold on cables of several speeds
make benchmarks ARGS="--part waiting"    what requests that wait for a pull cost one that generates
make benchmarks ARGS="--part pulls"      what a pull costs besides its bytes, from the image alone
make benchmarks ARGS="--part key"        what the cluster's key costs, from the image alone
make benchmarks ARGS="--part beside"     a short pull beside another node's long one, from the image alone
make benchmarks ARGS="--part checksum"   what KV_CHECKSUM=on costs a pull, from the image alone
make benchmarks ARGS="--part bandwidth"  how fast NIXL moves KV over loopback and the rig's cable
make benchmarks ARGS="--part gateway"    what the gateway adds to a time to first token
make benchmarks ARGS="--part ways"       the gateway against other ways to the servers of the stack that is up
make benchmarks ARGS="--part sharing"    LMCache in vLLM and beside it, in turn
make benchmarks ARGS="--part layers"     the CUDA image by layer, where it is built
make benchmarks ARGS="--part nothing"    removes Docker, images and .venv, then times `make demo`
make benchmarks ARGS=--docs              measures nothing: the document from benchmarks/results.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.cpu import (
    beside,
    checksum_cost,
    gateway_overhead,
    growth,
    key_cost,
    layers,
    pulls,
    sharing,
    under_load,
    ways,
)
from benchmarks.machine import Machine, machine
from benchmarks.memory import GIB, PeakMemory
from benchmarks.results import Result, Results, keep, last, read
from benchmarks.rig import bandwidth, links_and_nodes, never_slower, waiting

RESULTS = ROOT / "benchmarks/results.jsonl"
DOCUMENT = ROOT / "docs/benchmarks.md"
DOCKER_PACKAGES = ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd")


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    # What our own make was told (ARGS) must not reach the make that is measured.
    ours = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "ARGS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, **options)


def timed_make(target: str) -> float:
    """Seconds that a make target took; its failure ends the measurement."""
    started = time.monotonic()
    result = run("make", target)
    if result.returncode != 0:
        sys.exit(f"make {target} failed, so nothing was measured:\n{result.stdout}\n{result.stderr}")
    return time.monotonic() - started


def measure_nothing() -> dict[str, Any]:
    """`make demo` on a machine without Docker, images, caches or .venv."""
    run("make", "down")
    run(".venv/bin/kvshare", "engine", "stop")
    run("apt-get", "purge", "-y", *DOCKER_PACKAGES)
    for path in ("/var/lib/docker", "/var/lib/containerd", ROOT / ".venv", ROOT / ".kvshare"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (
        Path("/etc/apt/sources.list.d/kvshare-trixie.sources"),
        Path("/etc/apt/preferences.d/kvshare-trixie"),
    ):
        path.unlink(missing_ok=True)
    for wheel in (ROOT / "docker/wheelhouse").glob("*.whl"):
        wheel.unlink()
    return {"demo_from_nothing_s": timed_make("demo")}


def measure_again() -> dict[str, Any]:
    """`make demo` once more after `make down`, with everything built."""
    timed_make("demo")
    timed_make("down")
    return {"demo_again_s": timed_make("demo")}


def measure_images() -> dict[str, Any]:
    listing = run("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "kvshare/*").stdout.split()
    sizes = {}
    for name in listing:
        inspected = run("docker", "image", "inspect", "--format", "{{.Size}}", name)
        sizes[name] = int(inspected.stdout)
    return {"image_bytes": sizes}


def measure_verify(count: int = 20) -> dict[str, Any]:
    """Verifications in a row, of one prompt each, on a stack that is up."""
    timed_make("up")
    proven, seconds, ratios = 0, [], []
    legs: dict[str, list[float]] = {}
    with PeakMemory() as peak:
        for _ in range(count):
            started = time.monotonic()
            result = run(".venv/bin/kvshare", "verify", "--output", "json", "--prompts", "1")
            seconds.append(time.monotonic() - started)
            report = json.loads(result.stdout)
            proven += bool(report["proven"])
            ratios.append(report["worth"]["peer_over_cold"])
            for leg, milliseconds in report["ttft_median_ms"].items():
                legs.setdefault(leg, []).append(milliseconds)
    return {
        "verifications": count,
        "proven": proven,
        "verify_s": seconds,
        "peer_over_cold": ratios,
        "ttft_ms": legs,
        "peak_memory_bytes": peak.bytes,
    }


Measure = Callable[[], dict[str, Any]]
PARTS: dict[str, Measure] = {
    "nothing": measure_nothing,
    "again": measure_again,
    "images": measure_images,
    "verify": measure_verify,
    "growth": growth.measure_growth,
    "pulls": pulls.measure_pulls,
    "key": key_cost.measure_key,
    "checksum": checksum_cost.measure_checksum,
    "beside": beside.measure_beside,
    "bandwidth": bandwidth.measure_bandwidth,
    "layers": layers.measure_layers,
    "links": links_and_nodes.measure_links,
    "nodes": links_and_nodes.measure_nodes,
    "never-slower": never_slower.measure_never_slower,
    "waiting": waiting.measure_waiting,
    "load": under_load.measure_load,
    "gateway": gateway_overhead.measure,
    "ways": ways.measure_ways,
    "sharing": sharing.measure_sharing,
}


def document(results: Results) -> str:
    """Return docs/benchmarks.md; what was not measured is left out."""
    newest = last(results)
    lines = [
        "# Benchmarks",
        "",
        "Written by `make benchmarks` from `benchmarks/results.jsonl`; do not edit. Absolute times are this",
        "machine's, ratios were taken in one run.",
        "",
        f"{newest.date}, commit {newest.commit}: {newest.hardware}. What is of another run says so.",
        "",
        "| what | measured | goal |",
        "|---|---|---|",
    ]
    for part, rows in ROWS.items():
        if part in results:
            lines += _dated(rows(results[part].found), results[part].on, newest)
    for part, section in SECTIONS.items():
        if part in results:
            unlike = results[part].on.unlike(newest)
            lines += [*section(results[part].found), *(["", unlike] if unlike else [])]
    return "\n".join(lines) + "\n"


def _dated(rows: Sequence[tuple[str, str, str]], on: Machine, newest: Machine) -> list[str]:
    """The rows; where they are of another run, each says when."""
    date = "" if on == newest else f", {on.date}"
    return [f"| {what}{date} | {measured} | {goal} |" for what, measured, goal in rows]


def _from_nothing(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    what = "`make demo` from nothing (Docker purged, nothing built)"
    return [(what, f"{found['demo_from_nothing_s'] / 60:.1f} min", "≤ 15 min")]


def _again(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [("`make demo` again", f"{found['demo_again_s'] / 60:.1f} min", "≤ 3 min")]


def _verified(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    seconds, ratios = found["verify_s"], found["peer_over_cold"]
    return [
        ("verifications in a row", f"{found['proven']} of {found['verifications']} proven", "20 of 20"),
        (
            "one verification, median (longest)",
            f"{statistics.median(seconds):.0f} s ({max(seconds):.0f} s)",
            "≤ 90 s",
        ),
        (
            "peer TTFT / cold TTFT, median (worst)",
            f"{statistics.median(ratios):.2f} ({max(ratios):.2f})",
            "≤ 0.5",
        ),
        ("peak memory of the running stack", f"{found['peak_memory_bytes'] / GIB:.1f} GiB", "≤ 8 GiB"),
    ]


def _sizes(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (f"image `{name}`", f"{size / 1e6:.0f} MB", "≤ 250 MB" if "client" in name else "")
        for name, size in sorted(found["image_bytes"].items())
    ]


def _legs(found: dict[str, Any]) -> list[str]:
    return [
        "",
        "TTFT by leg, median of all verifications, 1,546-token prompts:",
        "",
        "| leg | ms |",
        "|---|---|",
        *(f"| {leg} | {statistics.median(values):.0f} |" for leg, values in found["ttft_ms"].items()),
    ]


ROWS: dict[str, Callable[[dict[str, Any]], list[tuple[str, str, str]]]] = {
    "nothing": _from_nothing,
    "again": _again,
    "verify": _verified,
    "images": _sizes,
}
SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "verify": _legs,
    "growth": growth.section,
    "load": under_load.section,
    "gateway": gateway_overhead.section,
    "ways": ways.section,
    "sharing": sharing.section,
    "links": links_and_nodes.links,
    "nodes": links_and_nodes.nodes,
    "never-slower": never_slower.section,
    "waiting": waiting.section,
    "pulls": pulls.section,
    "key": key_cost.section,
    "checksum": checksum_cost.section,
    "beside": beside.section,
    "bandwidth": bandwidth.section,
    "layers": layers.section,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="default: again, images, verify")
    parser.add_argument("--verifications", type=int, default=20, help="how many in a row (default 20)")
    parser.add_argument("--docs", action="store_true", help="write the document, measure nothing")
    options = parser.parse_args()
    parts = [] if options.docs else options.part or ["again", "images", "verify"]
    measures: dict[str, Measure] = {**PARTS, "verify": partial(measure_verify, options.verifications)}
    for part in parts:
        print(f"measuring: {part}", file=sys.stderr)
        on = machine()
        keep(RESULTS, [Result(part, on, measures[part]())])
    DOCUMENT.write_text(document(read(RESULTS)))
    print(DOCUMENT.relative_to(ROOT))


if __name__ == "__main__":
    main()
