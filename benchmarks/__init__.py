"""What measures kvshare and writes the documents of what it saw: cpu, rig and gpu say where.

What two of them need is here; `python -m benchmarks` writes docs/benchmarks.md, `python -m benchmarks.gpu`
docs/gpu.md.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
