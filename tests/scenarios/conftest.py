"""The real stack, vLLM, LMCache, controller and NIXL, on the CPU: on this machine's own engine, or on two."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kvshare.config.settings import CONTROLLER, MULTIPROCESS
from tests.conftest import ROOT
from tests.rig import engines, network
from tests.rig.__main__ import SETTINGS
from tests.scenarios.under_faults.figures import Figures

HERE = Path(__file__).parent
CPU_FILES = "compose.yaml:compose.cpu.yaml"
FILES = {CONTROLLER: CPU_FILES, MULTIPROCESS: f"{CPU_FILES}:compose.mp.yaml"}
START_TIMEOUT_S = 400
VERIFY_TIMEOUT_S = 180
SHORT_S = 1200  # at most, of a scenario's short form
# Of the first verification; each further one takes the next, since a used seed's prompts are cached.
SEED = 41
# Two chunks and a rest show what is not about time as well as the six that the tool takes, and sooner.
SHORT = "522"
# What a server needs to serve them besides the model; as many slots as there are adapters.
WITH_ADAPTERS = (
    "--enable-lora --max-loras 2 --max-lora-rank 8 --lora-modules a=/models/lora-a b=/models/lora-b"
)
FIGURES = pytest.StashKey[dict[str, Figures]]()  # by the test's id
LETTERS = "abcdefghijklmnopqrstuvwxyz "


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

    @property
    def red(self) -> list[dict[str, Any]]:
        """The checks that went red, in causal order."""
        checks = (check for category in self.report["categories"] for check in category["checks"])
        return [check for check in checks if check["result"] == "error"]

    def failed_ids(self) -> list[str]:
        return [check["id"] for check in self.red]

    @property
    def said(self) -> str:
        """For a failed test: the narration, and of a report, which has thousands of lines, what went red."""
        try:
            shown = json.dumps(self.red, indent=2)
        except (ValueError, KeyError, TypeError):  # not a report of checks
            shown = self.out
        return f"exit code {self.code}\n{shown}\n{self.err}"


class Rig:
    """The stack of one test run; an overlay is a Compose file that breaks one thing."""

    def __init__(self) -> None:
        self._seed = SEED
        self._overlays: tuple[Path, ...] = ()
        self._decisions: dict[str, str] = {}

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
        return {**os.environ, "DEVICE": "cpu", "COMPOSE_FILE": files, "NO_COLOR": "1", **self._decisions}

    def docker(self, *arguments: str) -> str:
        command = ["docker", *arguments]
        result = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_TIMEOUT_S,
            check=True,
        )
        return result.stdout.strip()

    def use(self, *overlays: Path, **decisions: str) -> None:
        """Start the stack with these overlays and decisions; Compose recreates only what they change."""
        self._overlays, self._decisions = overlays, decisions
        outcome = self.kvshare("up", "all", "--timeout", str(START_TIMEOUT_S - 20))
        assert outcome.code == 0, outcome.err

    def down(self) -> None:
        self.compose("down", "--remove-orphans", "--timeout", "20")

    def verify(self, *options: str, prompts: int = 1) -> Outcome:
        """A verification with short prompts, unless the options say how long."""
        return self.kvshare(*self.verification(prompts), *options, timeout=VERIFY_TIMEOUT_S)

    def verification(self, prompts: int = 1) -> tuple[str, ...]:
        """The tool's arguments for a verification with prompts that no server has seen."""
        self._seed += 1
        numbers = ("--seed", str(self._seed), "--prompts", str(prompts), "--prompt-tokens", SHORT)
        return ("verify", "--output", "json", *numbers)


def run_beside_models(image: str, script: Path) -> None:
    """Run a script of Python in the engine image, where /models is the stack's own."""
    command = ("docker", "run", "--rm", "--interactive", "--network=none", "--volume=kvshare_models:/models")
    run = (*command, "--entrypoint=python", image, "-")
    subprocess.run(run, input=script.read_text(), text=True, check=True, timeout=120)


def make_adapters(image: str) -> None:
    """Make two LoRA adapters of the demo model, `a` and `b`, beside it."""
    run_beside_models(image, Path(__file__).with_name("adapters.py"))


def other_weights(made: Path) -> None:
    """Make a file of the weights that prefill serves, a part of one layer's keys negated."""
    made.parent.mkdir(parents=True, exist_ok=True)
    source = "kvshare-prefill-1:/models/kvshare-demo/model.safetensors"
    subprocess.run(["docker", "cp", source, made], check=True, timeout=60)
    data = bytearray(made.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    begin, _ = json.loads(data[8:end])["model.layers.3.self_attn.k_proj.weight"]["data_offsets"]
    for sign in range(end + begin + 3, end + begin + 65536, 4):  # of each float32
        data[sign] ^= 0x80
    made.write_bytes(data)
    made.chmod(0o644)  # for the container's user


def letters(seed: int | str, count: int) -> str:
    """A prompt of the demo model: random letters and spaces, a token each."""
    return "".join(random.Random(seed).choices(LETTERS, k=count))


@contextmanager
def on_this_machine() -> Iterator[Rig]:
    """The stack on this machine's own engine; at the end its containers are gone, and the engine still runs.

    So are those of a demo before: an engine starts them again with itself, and Ctrl-C leaves them alone.
    """
    rig = Rig()
    rig.down()
    try:
        yield rig
    finally:
        rig.down()


class TwoMachines(Rig):
    """The stack over the rig's contexts; the tool runs as the operator, or on the operator's own host."""

    def __init__(self, sharing: str = CONTROLLER) -> None:
        super().__init__()
        self._seed += 1000  # apart from the other scenarios' prompts
        self.sharing = sharing
        self.settings: dict[str, str] = {**SETTINGS, "SHARING": sharing, "COMPOSE_FILE": FILES[sharing]}
        self.overlays: tuple[Path, ...] = ()  # what runs differs by these

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.settings, "NO_COLOR": "1"}

    def up(self, node: str = "all", **settings: str) -> Outcome:
        return self.run("up", node, "--timeout", str(START_TIMEOUT_S - 20), **settings)

    def make(self, target: str, *variables: str) -> Outcome:
        """A target of the Makefile; what is to be set up is, and not again."""
        command = ["make", "--old-file=setup", target, *variables]
        result = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=START_TIMEOUT_S
        )
        return Outcome(result.returncode, result.stdout, result.stderr)

    def run(self, *arguments: str, **settings: str) -> Outcome:
        """The tool with other settings than the two machines'."""
        return self.kvshare(*arguments, timeout=START_TIMEOUT_S, **settings)


@pytest.fixture(scope="session")
def two_machines(images: dict[str, str], request: pytest.FixtureRequest) -> Iterator[TwoMachines]:
    """Two engines with the images of this tree; at the end nothing of them runs, and no namespace is left."""
    del images
    network.require("ip", "nsenter", "dockerd", "sshd", "ssh-keygen", "script")
    with engines.running(engines.PAIR):
        yield TwoMachines(request.config.getoption("--sharing"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give no short form longer than SHORT_S: whoever runs all of them is to read what hangs."""
    for item in items:
        marker = item.get_closest_marker("timeout")
        if marker and marker.args[0] > SHORT_S and not config.getoption("--long"):
            item.add_marker(pytest.mark.timeout(SHORT_S), append=False)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Figures], Figures]:
    """Keep a fault's figures, for the line at the end of the run and for docs/reliability.md."""

    def keep(figures: Figures) -> Figures:
        if (HERE / "under_faults" / figures.fault).is_dir():
            figures = replace(figures, sharing=request.config.getoption("--sharing"))
        request.config.stash.setdefault(FIGURES, {})[request.node.nodeid] = figures
        return figures

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash.get(FIGURES, {}):
        terminalreporter.section("faults")
        for one in figures.values():
            terminalreporter.write_line(one.line)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """On a failure, show what the containers said last."""
    fixtures = getattr(item, "funcargs", {})
    rig = fixtures.get("rig") or fixtures.get("two_machines")
    if call.when == "call" and call.excinfo is not None and isinstance(rig, Rig):
        item.add_report_section("call", "containers", rig.kvshare("logs", "--tail", "150").out)
