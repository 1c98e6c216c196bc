"""What the cluster's key costs, by `benchmarks.cpu.two_ways`.

.venv/bin/python -m benchmarks.cpu.key_cost         prints JSON; needs the image engine-cpu
make benchmarks ARGS="--part key"                  and writes it into docs/benchmarks.md
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

from benchmarks.cpu import pulls, two_ways

KEY = "5b" * 32  # pragma: allowlist secret


def measure_key() -> dict[str, Any]:
    return two_ways.measure("benchmarks.cpu.key_cost")


def section(found: dict[str, Any]) -> list[str]:
    title = "What the cluster's key costs"
    return two_ways.section(title, "a key", "benchmarks/cpu/key_cost.py", found)


def _both(extra: dict[str, Any]) -> dict[str, dict[int, list[float]]]:
    with tempfile.NamedTemporaryFile("w") as key:
        key.write(KEY)
        key.flush()
        prompts = two_ways.prompts()
        with pulls.pair(extra, prompts) as without, pulls.pair(extra, prompts, key.name) as keyed:
            return two_ways.in_turns(without, keyed)


if __name__ == "__main__":
    print(json.dumps(_both(json.loads(sys.argv[2])) if sys.argv[1:] else measure_key(), indent=None))
