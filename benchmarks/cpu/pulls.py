"""What a pull costs besides its bytes: two real nodes of LMCache without vLLM, CPU to CPU over loopback.

    .venv/bin/python -m benchmarks.cpu.pulls            prints JSON; needs the image engine-cpu
    make benchmarks ARGS="--part pulls"                and writes it into docs/benchmarks.md

A pull is timed from the scheduler's question to its answer, as vLLM asks: hash, controller, peer, transfer,
and the sleeps in between, vLLM's own rest of 1 ms included. The fixed cost is the fit of t0 + bytes/B at no
bytes, over each length's median. The first pull of a pair is preceded by one lookup that misses, as
every cold prompt makes one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # alone in a container, where no package is
CHUNK, WIDTH = 256, 400  # tokens; values of a token's keys: 3,200 bytes of KV a token
LENGTHS = (1, 2, 4, 8)  # chunks
ROUNDS, PAIRS = 25, 5
UPSTREAM_BACKOFF_S = 0.01
# As kvshare_engine.server has NIXL count what it sends; both nodes of a pair share one container here.
COUNTING = {
    "NIXL_TELEMETRY_ENABLE": "y",
    "NIXL_TELEMETRY_EXPORTER": "prometheus_mp",
    "NIXL_TELEMETRY_PROMETHEUS_LOCAL": "y",
    "NIXL_TELEMETRY_PROMETHEUS_PORT": "8204",
    "NIXL_TELEMETRY_MULTIPROC_DIR": "/tmp/nixl",
}
TIMEOUT_S = 1800


def measure_pulls() -> dict[str, Any]:
    """Measure in a container of the image; the nodes have the extra_config of configs/lmcache.yaml."""
    ours = our_extra()
    found: dict[str, Any] = {"load_before": os.getloadavg()[0]}
    for name, extra, counting in (
        ("upstream", {"lookup_backoff_time": UPSTREAM_BACKOFF_S}, {}),
        ("uncounted", ours, {}),
        ("ours", ours, COUNTING),
    ):
        seconds = in_container("benchmarks.cpu.pulls", "times", extra, counting)
        medians = {int(chunks): statistics.median(values) for chunks, values in seconds.items()}
        found[name] = {
            "t0_ms": fixed_ms(medians),
            "median_ms": {str(chunks * CHUNK): value * 1000 for chunks, value in medians.items()},
            "least_ms": {str(int(c) * CHUNK): min(values) * 1000 for c, values in seconds.items()},
        }
    found["first_over_second"] = in_container("benchmarks.cpu.pulls", "first", ours, COUNTING)
    return {**found, "load_after": os.getloadavg()[0]}


def section(found: dict[str, Any]) -> list[str]:
    """Return the lines of docs/benchmarks.md."""
    ours, upstream, ratios = found["ours"], found["upstream"], found["first_over_second"]
    rows = (
        ("10 ms, upstream's", "no", upstream),
        ("configs/lmcache.yaml", "no", found["uncounted"]),
        ("configs/lmcache.yaml", "yes", ours),
    )
    return [
        "",
        "## What a pull costs besides its bytes",
        "",
        "Two nodes without vLLM, CPU to CPU over loopback, from the scheduler's question to its answer",
        f"(`benchmarks/cpu/pulls.py`). Load average {found['load_before']:.1f} before, "
        f"{found['load_after']:.1f} after: where it is above the cores, the least of many says more than "
        "the median.",
        "",
        "| `lookup_backoff_time` | NIXL counts | fixed cost, fitted | 1,024 tokens, median | least |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {counts} | {one['t0_ms']:.1f} ms | {one['median_ms']['1024']:.1f} ms "
            f"| {one['least_ms']['1024']:.1f} ms |"
            for name, counts, one in rows
        ),
        "",
        f"Fixed cost, ours over upstream's: {ours['t0_ms'] / upstream['t0_ms']:.2f}. First pull of a pair "
        f"over its second, median (worst) of {len(ratios)} pairs: {statistics.median(ratios):.2f} "
        f"({max(ratios):.2f}).",
    ]


def our_extra() -> dict[str, Any]:
    """Return the extra_config of configs/lmcache.yaml."""
    import yaml

    extra: dict[str, Any] = yaml.safe_load((ROOT / "configs/lmcache.yaml").read_text())["extra_config"]
    return extra


def fixed_ms(medians: dict[int, float]) -> float:
    """Return the cost at no bytes in ms, fitted over the seconds of pulls by chunks."""
    from kvshare.cost.fit import fit_pull

    samples = [(float(chunks * CHUNK), value) for chunks, value in medians.items()]
    return fit_pull(samples, 8.0 * WIDTH).t0_s * 1000


def in_container(
    module: str, what: str, extra: dict[str, Any], environment: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """Return what a module of ours prints as JSON in a container of the image, alone on its network."""
    command = (
        *("docker", "run", "--rm", "--network", "none", "--volume", f"{ROOT}:/src:ro", "--workdir", "/src"),
        *("--env", "PYTHONDONTWRITEBYTECODE=1", "--env", "LMCACHE_TRACK_USAGE=false"),
        *(f"--env={name}={value}" for name, value in environment.items()),
        *("--entrypoint", "python", f"{os.environ.get('REGISTRY') or 'kvshare'}/engine-cpu:0.1.0"),
        *("-m", module, what, json.dumps(extra)),
    )
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if result.returncode != 0:
        sys.exit(f"The pulls were not measured:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


# --- inside the container -----------------------------------------------------------------------------------


@contextmanager
def pair(extra: dict[str, Any], prompts: dict[int, int], key_file: str = "", **config: Any) -> Iterator[Any]:
    """The second of two nodes; the first holds the prompts, chunks by seed, and the controller knows it."""
    sys.path.insert(0, "/src/docker")
    from probes.controller import free_ports, running_controller
    from probes.node import running_node, settings_for

    ports = free_ports()
    sizes: dict[str, Any] = {
        "chunk": CHUNK,
        "width": WIDTH,
        "pages": 64,
        "extra": extra,
        "key_file": key_file,
        "config": config,
    }
    with (
        running_controller(ports, key_file),
        running_node(settings_for("owner", ports, **sizes)) as owner,
        running_node(settings_for("other", ports, **sizes)) as other,
    ):
        for node in (owner, other):
            node.wait_until_synced(ports)
        for seed, chunks in prompts.items():
            owner.ask("store", seed=seed, chunks=chunks)
        time.sleep(3.0)  # admission, and some heartbeats
        yield other


def pulled_s(node: Any, seed: int, chunks: int, request: str) -> float:
    found = node.ask("get", seed=seed, chunks=chunks, request=request)
    if found["hits"] != chunks * CHUNK or found["wrong"]:
        raise SystemExit(f"A pull of {chunks} chunks gave {found}.")
    return float(found["seconds"])


def _times(extra: dict[str, Any]) -> dict[int, list[float]]:
    """Seconds of pulls by chunks, the lengths in turn."""
    found: dict[int, list[float]] = {chunks: [] for chunks in LENGTHS}
    with pair(extra, {chunks: chunks for chunks in LENGTHS}) as node:
        for turn in range(-1, ROUNDS):
            for chunks, values in found.items():
                seconds = pulled_s(node, chunks, chunks, f"{turn}-{chunks}")
                if turn >= 0:  # the first of each warms up
                    values.append(seconds)
    return found


def _first(extra: dict[str, Any]) -> list[float]:
    """Of some fresh pairs each, the first pull's time over the second's, of 1,024 tokens."""
    ratios = []
    for _ in range(PAIRS):
        with pair(extra, {1: 4, 2: 4}) as node:
            node.ask("get", seed=3, chunks=4, request="miss")
            first, second = (pulled_s(node, seed, 4, f"pull-{seed}") for seed in (1, 2))
            ratios.append(first / second)
    return ratios


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps({"times": _times, "first": _first}[sys.argv[1]](json.loads(sys.argv[2]))))
    else:
        print(json.dumps(measure_pulls(), indent=1))
