"""`kvshare bench` where no container engine runs: on plain processes, and its files but for the page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from kvshare.bench import outputs, run
from kvshare.bench.results import Document
from kvshare.site.native import Native


def bench(native: Native, options: run.Options, folder: Path) -> Document:
    """Measure, and write what `kvshare bench` writes but for the page; return its document."""
    finished = run.measure(native.site(), options, Console(stderr=True))
    outputs.write(folder, finished.document, finished.observed)
    return finished.document
