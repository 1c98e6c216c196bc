"""What only a GPU can show: run by hand on a machine that has one, `python -m benchmarks.gpu --help`.

No file here is called test_*, so plain pytest collects none of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where the tool, the entrypoint and the patches are imported from, as in the images.
sys.path[:0] = [str(ROOT / folder) for folder in ("tools", "docker/engine", "docker/patches")]
