"""What KV_CHECKSUM=on costs a pull, by `benchmarks.cpu.two_ways`.

.venv/bin/python -m benchmarks.cpu.checksum_cost    prints JSON; needs the image engine-cpu
make benchmarks ARGS="--part checksum"             and writes it into docs/benchmarks.md
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.cpu import pulls, two_ways


def measure_checksum() -> dict[str, Any]:
    return two_ways.measure("benchmarks.cpu.checksum_cost")


def section(found: dict[str, Any]) -> list[str]:
    title = "What checksums of KV cost (`KV_CHECKSUM=on`)"
    return two_ways.section(title, "checksums", "benchmarks/cpu/checksum_cost.py", found)


def _both(extra: dict[str, Any]) -> dict[str, dict[int, list[float]]]:
    prompts = two_ways.prompts()
    with pulls.pair(extra, prompts) as without, pulls.pair(extra, prompts, p2p_checksum=True) as checked:
        return two_ways.in_turns(without, checked)


if __name__ == "__main__":
    print(json.dumps(_both(json.loads(sys.argv[2])) if sys.argv[1:] else measure_checksum(), indent=None))
