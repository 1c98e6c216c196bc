"""The memory of the stack's containers, as Docker counts it."""

from __future__ import annotations

import re
import subprocess
import threading

GIB = 1024**3
UNITS = {"KiB": 1024, "MiB": 1024**2, "GiB": GIB}
LABEL = "label=com.docker.compose.project=kvshare"


class PeakMemory:
    """Highest sum of the stack's containers' memory, in bytes, sampled once a second."""

    def __init__(self) -> None:
        self.bytes = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(1.0):
            names = _docker("ps", "--quiet", "--filter", LABEL).split()
            listing = _docker("stats", "--no-stream", "--format", "{{.MemUsage}}", *names)
            self.bytes = max(self.bytes, sum(map(_bytes, re.findall(r"^([\d.]+[KMG]iB)", listing, re.M))))


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], text=True, capture_output=True).stdout


def _bytes(text: str) -> float:
    return float(text[:-3]) * UNITS[text[-3:]]
