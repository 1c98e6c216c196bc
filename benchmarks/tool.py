"""The tool on a running stack, as a benchmark runs it; its failure ends the measurement."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import ROOT


def bench(*options: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Return what `kvshare bench` found, of its bench.json."""
    with tempfile.TemporaryDirectory() as folder:
        run("bench", *options, "--out", folder, environment=environment)
        found: dict[str, Any] = json.loads((Path(folder) / "bench.json").read_text())
    return {
        name: found[name] for name in ("points", "verdict", "cost", "link", "repetitions", "first_pull_ms")
    }


def run(*arguments: str, environment: dict[str, str] | None = None) -> None:
    """Run one command of the tool."""
    command = [str(ROOT / ".venv/bin/kvshare"), *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    if result.returncode != 0:
        sys.exit(f"kvshare {arguments[0]} failed, so nothing was measured:\n{result.stdout}\n{result.stderr}")
