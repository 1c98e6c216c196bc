"""What a measurement ran on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import ROOT


@dataclass(frozen=True)
class Machine:
    """When, which commit of kvshare, and where; what is of a GPU only where there is one.

    ``commit`` is the one that was checked out, with "-dirty" where files differed from it; "unknown"
    without git or a repository.
    """

    date: str
    commit: str
    cores: int
    cpu: str = ""
    memory_gib: float = 0
    system: str = ""
    gpus: int = 0
    gpu: str = ""
    driver: str = ""
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def hardware(self) -> str:
        """In words."""
        if self.gpus:
            count = "one" if self.gpus == 1 else self.gpus
            return f"{count} {self.gpu}, driver {self.driver}, {self.cores} CPU cores"
        return f"{self.system}, {self.cores} cores of {self.cpu}, {self.memory_gib} GiB of memory, no GPU"

    def unlike(self, other: Machine) -> str:
        """What tells a part's run from the ``other`` that a document names; empty if nothing does."""
        if self == other:
            return ""
        elsewhere = "" if self.hardware == other.hardware else f": {self.hardware}"
        return f"Run on {self.date}, commit {self.commit}{elsewhere}."


def machine() -> Machine:
    """Return this machine, as it is without its GPUs."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return Machine(
        date=datetime.now(UTC).date().isoformat(),
        commit=_commit(),
        cores=os.cpu_count() or 0,
        cpu=cpu.group(1) if cpu else platform.machine(),
        memory_gib=round(int(memory.group(1)) / 1024**2, 1) if memory else 0,
        system=platform.freedesktop_os_release()["PRETTY_NAME"],
    )


def _commit() -> str:
    """Return the commit that is checked out; a new figure is no change to what was measured.

    Of an archive without a repository COMMIT in the environment tells it.
    """
    commit = _git("rev-parse", "--short", "HEAD") or os.environ.get("COMMIT", "")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!docs", ":!*.jsonl")
    return f"{commit or 'unknown'}{'-dirty' if changed else ''}"


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()
