"""A stack that runs as plain processes of this machine, where no container engine can (native.py)."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvshare import records
from kvshare.config import keys
from kvshare.config.settings import Settings
from kvshare.contract import FINGERPRINT, IDENTITY
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.site.base import NONE, State, Variables, last_line, start_client, uncoloured
from kvshare.stack.members import Member, Stack

STOP_S = 30.0
END_S = 10.0
TAIL_LINES = 20


@dataclass
class Process:
    """One service: its folder holds the log, the fingerprint and the metrics."""

    service: str
    folder: Path
    environment: Mapping[str, str]
    running: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Everything that the service printed since its start."""
        return self.folder / "log"

    def tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def start(self, command: list[str]) -> None:
        """Start it anew, in a session of its own: Ctrl-C reaches us alone, and we stop all in order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.running = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_healthy(self) -> bool:
        """Run the container's own health check."""
        command = [sys.executable, "-m", "kvshare_engine", "health"]
        checked = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True)
        return checked.returncode == 0

    def ended(self) -> int | None:
        """Return the exit code if the process ended by itself."""
        return None if self.running is None else self.running.poll()

    def state(self) -> State:
        """Return how it is, in Docker's words."""
        code = self.ended()
        health = "healthy" if self.is_healthy() else "unhealthy"
        return State(self.service, "running" if code is None else "exited", health, code or 0)

    def stop(self) -> None:
        """Ask the process and its children to end, and end what is left after STOP_S seconds."""
        if self.running is None:
            return
        _signal_group(self.running, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.wait(STOP_S)
        _signal_group(self.running, signal.SIGKILL)  # children that outlive their parent too
        self.running.wait()
        self.running = None


@dataclass(frozen=True)
class Piped:
    """A command, and the pipes to it and back."""

    name: str
    running: subprocess.Popen[str]

    def answer(self, said: str, timeout_s: float) -> str:
        """Say all that it reads, and return all that it prints; CouldNotCheckError if it fails or is late."""
        try:
            printed, complaint = self.running.communicate(said, timeout_s)
        except subprocess.TimeoutExpired:
            raise CouldNotCheckError(f"{self.name} did not end in {timeout_s:.0f} s.") from None
        if self.running.returncode != 0:
            raise CouldNotCheckError(f"{self.name}: {last_line(complaint)}.")
        return printed

    def first_line(self) -> str:
        """Return what it prints first; CouldNotCheckError if it ends without a word."""
        assert self.running.stdout is not None
        if line := self.running.stdout.readline():
            return line
        return self.answer("", END_S)

    def end(self) -> None:
        """End its input, and wait a while."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.communicate(timeout=END_S)


class Processes:
    """The Site of processes that run."""

    silent: Mapping[str, KvshareError] = {}

    def __init__(self, stack: Stack, settings: Settings, processes: Mapping[str, Process]) -> None:
        """From now on their logs count."""
        self.stack, self.settings = stack, settings
        self._processes = processes
        self._read = {name: process.log.stat().st_size for name, process in processes.items()}

    def look(self) -> Mapping[str, State]:
        """Return how the processes are now."""
        return {name: process.state() for name, process in self._processes.items()}

    def log(self, member: Member, whole: bool = False) -> str:
        """Return what a process has printed."""
        raw = self._processes[member.name].log.read_bytes()[0 if whole else self._read[member.name] :]
        return uncoloured(raw.decode(errors="replace"))

    @contextmanager
    def beside(self, member: Member, *command: str, environment: Variables = NONE) -> Iterator[Piped]:
        """Run a command in a process's environment."""
        program = sys.executable if command[0] == "python" else command[0]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [program, *command[1:]],
            env={**self._processes[member.name].environment, **environment},
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        ) as running:
            try:
                yield Piped(command[0], running)
            finally:
                running.kill()

    def fingerprint(self, member: Member) -> str:
        """Return the file that the entrypoint writes into the process's folder."""
        return self._file(member, FINGERPRINT)

    def identity(self, member: Member) -> str:
        """Return the file that a server's LMCache writes there."""
        return self._file(member, IDENTITY)

    def _file(self, member: Member, name: str) -> str:
        path = self._processes[member.name].folder / Path(name).name
        try:
            return path.read_text()
        except OSError as error:
            raise CouldNotCheckError(
                f"{member.name}'s {path.name} cannot be read: {error.strerror}."
            ) from None

    @contextmanager
    def client(self, subcommand: str, task: object) -> Iterator[subprocess.Popen[str]]:
        """Run the tool's own command."""
        options, said = keys.handed(self.settings.api_key, self.settings.cluster_key)
        command = [sys.executable, "-m", "kvshare", subcommand, "--spec", records.dumps(task), *options]
        with start_client(command, said, env=self._processes["prefill"].environment) as process:
            try:
                yield process
            finally:
                process.kill()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
