"""The real stack on this machine's own Docker engine: real vLLM, LMCache, controller and NIXL, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

CPU_FILES = "compose.yaml:compose.cpu.yaml"
START_TIMEOUT_S = 400
VERIFY_TIMEOUT_S = 180
SEED = (
    41  # of the first verification; each further one takes the next, since a used seed's prompts are cached
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed

    def failed_ids(self) -> list[str]:
        """Ids of the checks that went red, in causal order."""
        checks = (check for category in self.report["categories"] for check in category["checks"])
        return [check["id"] for check in checks if check["result"] == "error"]


class Rig:
    """The stack of one test run; an overlay is a Compose file that breaks one thing."""

    def __init__(self) -> None:
        self._seed = SEED
        self._overlays: tuple[Path, ...] = ()

    def kvshare(self, *arguments: str, timeout: float = START_TIMEOUT_S, **environment: str) -> Outcome:
        result = subprocess.run(
            [sys.executable, "-m", "kvshare", *arguments],
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Outcome(result.returncode, result.stdout, result.stderr)

    def compose(self, *arguments: str) -> str:
        command = ["docker", "compose", "--profile", "*", *arguments]
        result = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=START_TIMEOUT_S
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    @property
    def environment(self) -> dict[str, str]:
        files = ":".join([CPU_FILES, *(str(overlay.relative_to(ROOT)) for overlay in self._overlays)])
        return {**os.environ, "DEVICE": "cpu", "COMPOSE_FILE": files, "NO_COLOR": "1"}

    def use(self, *overlays: Path) -> None:
        """Start the stack with these overlays; Compose recreates only what they change."""
        self._overlays = overlays
        outcome = self.kvshare("up", "all", "--timeout", str(START_TIMEOUT_S - 20))
        assert outcome.code == 0, outcome.err

    def verify(self, *options: str, prompts: int = 1) -> Outcome:
        self._seed += 1
        return self.kvshare(
            "verify", "--output", "json", "--seed", str(self._seed), "--prompts", str(prompts), *options,
            timeout=VERIFY_TIMEOUT_S,
        )  # fmt: skip


@pytest.fixture(scope="module")
def rig(images: dict[str, str]) -> Iterator[Rig]:
    """The stack on images of this tree; at the end its containers are gone, and the engine still runs."""
    del images
    rig = Rig()
    yield rig
    rig.compose("down", "--remove-orphans", "--timeout", "20")


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """On a failure, show what the containers said last."""
    rig = getattr(item, "funcargs", {}).get("rig")
    if call.when == "call" and call.excinfo is not None and isinstance(rig, Rig):
        item.add_report_section("call", "containers", rig.kvshare("logs", "--tail", "40").out)
