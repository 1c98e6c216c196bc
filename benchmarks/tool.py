"""The tool on a running stack, as a benchmark runs it; its failure ends the measurement."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import ROOT
from kvshare.bench import outputs
from kvshare.bench.results import Document


def bench(*options: str, environment: dict[str, str] | None = None) -> Document:
    """Return what `kvshare bench` found."""
    with tempfile.TemporaryDirectory() as folder:
        run("bench", *options, "--out", folder, environment=environment)
        return outputs.load(Path(folder) / outputs.JSON)


def run(*arguments: str, environment: dict[str, str] | None = None) -> None:
    """Run one command of the tool."""
    command = [str(ROOT / ".venv/bin/kvshare"), *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    if result.returncode != 0:
        sys.exit(f"kvshare {arguments[0]} failed, so nothing was measured:\n{result.stdout}\n{result.stderr}")
