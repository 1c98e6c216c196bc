"""Write docs/bench.schema.json from the dataclasses; `--check` says if it is current (exit code 1: not)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kvshare.bench.schema import schema

TARGET = Path(__file__).resolve().parent.parent / "docs/bench.schema.json"

if __name__ == "__main__":
    text = json.dumps(schema(), indent=2) + "\n"
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text)
    elif not TARGET.is_file() or TARGET.read_text() != text:
        sys.exit("docs/bench.schema.json is not current: type python tools/generate_bench_schema.py.")
