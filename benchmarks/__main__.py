"""Measure kvshare on this machine and write docs/benchmarks.md.

    make benchmarks                          everything that a running Docker engine allows
    make benchmarks ARGS="--part verify"     one part; the others keep what was last measured
    make benchmarks ARGS="--part growth"     `kvshare bench` on the stack that is up, over lengths and loads
    make benchmarks ARGS="--part links"      the same over cables of several speeds, on two engines (make rig)
    make benchmarks ARGS="--part nodes"      and with one, two and three decode nodes
    make benchmarks ARGS="--part load"       16 clients that share half of each prompt
    make benchmarks ARGS="--part never-slower"  the calibrated threshold on cables of several speeds
    make benchmarks ARGS="--part pulls"      what a pull costs besides its bytes, from the image alone
    make benchmarks ARGS="--part bandwidth"  how fast NIXL moves KV over loopback and the rig's cable
    make benchmarks ARGS="--part layers"     the CUDA image by layer, where it is built
    make benchmarks ARGS="--part nothing"    removes Docker, images and .venv, then times `make demo`

Results are kept in benchmarks/results.json, so that the document can be made again without measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.cpu import growth, layers, pulls, under_load
from benchmarks.machine import machine
from benchmarks.rig import bandwidth, links_and_nodes, never_slower

RESULTS = ROOT / "benchmarks/results.json"
DOCUMENT = ROOT / "docs/benchmarks.md"
GIB = 1024**3
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


class PeakMemory:
    """Highest sum of the stack's containers' memory, in bytes, sampled once a second."""

    def __init__(self) -> None:
        self.bytes = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(1.0):
            names = run(
                "docker", "ps", "--quiet", "--filter", "label=com.docker.compose.project=kvshare"
            ).stdout.split()
            listing = run("docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", *names).stdout
            self.bytes = max(self.bytes, sum(map(_bytes, re.findall(r"^([\d.]+[KMG]iB)", listing, re.M))))


def _bytes(text: str) -> float:
    units = {"KiB": 1024, "MiB": 1024**2, "GiB": GIB}
    return float(text[:-3]) * units[text[-3:]]


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


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": measure_nothing,
    "again": measure_again,
    "images": measure_images,
    "verify": measure_verify,
    "growth": growth.measure_growth,
    "pulls": pulls.measure_pulls,
    "bandwidth": bandwidth.measure_bandwidth,
    "layers": layers.measure_layers,
    "links": links_and_nodes.measure_links,
    "nodes": links_and_nodes.measure_nodes,
    "never-slower": never_slower.measure_never_slower,
    "load": under_load.measure_load,
}


def row(what: str, measured: str, goal: str) -> str:
    return f"| {what} | {measured} | {goal} |"


def document(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        "# Benchmarks",
        "",
        "Written by `make benchmarks`; do not edit. Absolute times are this machine's,",
        "ratios were taken in one run.",
        "",
        f"{about['date']}, {about['system']}, {about['cores']} cores of {about['cpu']}, "
        f"{about['memory_gib']} GiB of memory, no GPU.",
        "",
        "| what | measured | goal |",
        "|---|---|---|",
    ]
    if "nothing" in results:
        seconds = results["nothing"]["demo_from_nothing_s"]
        lines.append(
            row(
                "`make demo` from nothing (Docker purged, nothing built)",
                f"{seconds / 60:.1f} min",
                "≤ 15 min",
            )
        )
    if "again" in results:
        lines.append(row("`make demo` again", f"{results['again']['demo_again_s'] / 60:.1f} min", "≤ 3 min"))
    if "verify" in results:
        found = results["verify"]
        ttft = {leg: statistics.median(values) for leg, values in found["ttft_ms"].items()}
        lines += [
            row(
                "verifications in a row", f"{found['proven']} of {found['verifications']} proven", "20 of 20"
            ),
            row(
                "one verification, median (longest)",
                f"{statistics.median(found['verify_s']):.0f} s ({max(found['verify_s']):.0f} s)",
                "≤ 90 s",
            ),
            row(
                "peer TTFT / cold TTFT, median (worst)",
                f"{statistics.median(found['peer_over_cold']):.2f} ({max(found['peer_over_cold']):.2f})",
                "≤ 0.5",
            ),
            row("peak memory of the running stack", f"{found['peak_memory_bytes'] / GIB:.1f} GiB", "≤ 8 GiB"),
        ]
    for name, size in sorted(results.get("images", {}).get("image_bytes", {}).items()):
        goal = "≤ 250 MB" if "client" in name else ""
        lines.append(row(f"image `{name}`", f"{size / 1e6:.0f} MB", goal))
    if "verify" in results:
        lines += [
            "",
            "TTFT by leg, median of all verifications, 1,546-token prompts:",
            "",
            "| leg | ms |",
            "|---|---|",
        ]
        lines += [f"| {leg.replace('_', ' ')} | {milliseconds:.0f} |" for leg, milliseconds in ttft.items()]
    if "growth" in results:
        lines += growth.section(results["growth"])
    if "load" in results:
        lines += under_load.section(results["load"])
    lines += links_and_nodes.section(results)
    if "never-slower" in results:
        lines += never_slower.section(results["never-slower"])
    if "pulls" in results:
        lines += pulls.section(results["pulls"])
    if "bandwidth" in results:
        lines += bandwidth.section(results["bandwidth"])
    if "layers" in results:
        lines += layers.section(results["layers"])
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="default: again, images, verify")
    parser.add_argument("--verifications", type=int, default=20, help="how many in a row (default 20)")
    options = parser.parse_args()
    parts = options.part or ["again", "images", "verify"]
    measures = {**PARTS, "verify": partial(measure_verify, options.verifications)}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parts:
        print(f"measuring: {part}", file=sys.stderr)
        results |= {part: measures[part](), "machine": machine()}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    DOCUMENT.write_text(document(results))
    print(DOCUMENT.relative_to(ROOT))


if __name__ == "__main__":
    main()
