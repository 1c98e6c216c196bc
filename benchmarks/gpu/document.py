"""docs/gpu.md and a page a machine in docs/gpu, from what runs left; every figure was measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu import RESULTS, slug
from benchmarks.gpu.beside import beside_one_gpu
from benchmarks.gpu.break_even import near_break_even
from benchmarks.gpu.sections import SECTIONS
from benchmarks.machine import Machine
from benchmarks.results import Result, Results, last, read
from benchmarks.tables import table

INDEX = ROOT / "docs/gpu.md"
PAGES = ROOT / "docs/gpu"


def write() -> None:
    """Write every page and the index of them."""
    for path, text in documents().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def documents() -> dict[Path, str]:
    """Return the text of each document by its path."""
    machines = [read(path) for path in sorted(RESULTS.glob("*.jsonl"))]
    pages = {PAGES / f"{slug(last(results))}.md": render(results) for results in machines}
    return {INDEX: index(machines), **pages}


def index(machines: list[Results]) -> str:
    """Return docs/gpu.md."""
    rows = []
    for results in machines:
        on = last(results)
        chain, bench = (_first(results, end) for end in ("", "/bench"))
        rows.append(
            [
                f"[{on.gpu}](gpu/{slug(on)}.md)",
                on.gpus,
                on.date,
                "–" if chain is None else "yes" if chain.found["proven"] else "**no**",
                "–" if bench is None else bench.found["verdict"],
            ]
        )
    return f"""# On a GPU

What `make test-gpu` has seen, a page a machine.

{table(["machine", "GPUs", "last run", "proven", "`kvshare bench`"], rows)}

No container engine ran there: controller, prefill and decode were plain processes (`make native`) with the
entrypoint, compose.yaml and configs/lmcache.yaml of the containers, the KV over loopback. The model has
Llama-3.1-8B's dimensions and seeded weights in bfloat16 (`benchmarks/gpu/model.py`). Never seen so
far: a GPU inside a container, two machines with GPUs, RDMA.

Made by `python -m benchmarks.gpu --docs` from `benchmarks/gpu/results`: a file a machine, a line a run, a
table a run. Near the length from which a pull pays runs differ; a page says so first.
"""


def _first(results: Results, end: str) -> Result | None:
    """Return what the simplest chain of a machine found."""
    return next(
        (results[part + end] for part in ("with", "pair", "ranks", "apart") if part + end in results), None
    )


def render(results: Results) -> str:
    """Return a machine's page; a part that was not run is left out."""
    newest = last(results)
    parts = [_head(newest), near_break_even(results), beside_one_gpu(results)]
    for name, told in SECTIONS.items():
        if name in results and "error" not in results[name].found:
            unlike = results[name].on.unlike(newest)
            parts.append(told(results[name].found) + (f"\n{unlike}\n" if unlike else ""))
    return "\n".join(part for part in parts if part)


def _head(on: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in on.versions.items())
    return f"""# {on.gpu if on.gpus == 1 else f"{on.gpus} {on.gpu}"}

Made by `python -m benchmarks.gpu --docs`; do not edit. How it was run: [gpu.md](../gpu.md).

{on.date}, commit {on.commit}: {on.hardware}; Python {on.python},
{versions}. What is of another run says so.
"""
