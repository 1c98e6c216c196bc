"""What only a GPU can show: run by hand on a machine that has one, `python -m benchmarks.gpu --help`.

No file here is called test_*, so plain pytest collects none of them.
"""

from __future__ import annotations

import re
import sys

from benchmarks import ROOT
from benchmarks.machine import Machine

RESULTS = ROOT / "benchmarks/gpu/results"  # JSON lines, a file a machine
# Where the tool, the entrypoint and the patches are imported from, as in the images.
sys.path[:0] = [str(ROOT / folder) for folder in ("tools", "docker/engine", "docker")]
# The file that packed-kv changes, and no other patch.
PACKED_KV = "lmcache/v1/gpu_connector/gpu_connectors.py"


def slug(on: Machine) -> str:
    """Return a machine's name in paths: how many GPUs of what kind."""
    name = re.sub(r"[^a-z0-9]+", "-", on.gpu.lower() or "cpu").strip("-")
    return name if on.gpus <= 1 else f"{on.gpus}x-{name}"
