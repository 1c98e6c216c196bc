"""One-off containers of the engine image: each bounded in time, none of which outlives the tool."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from kvshare.errors import CouldNotCheckError
from kvshare.site import docker_cli

RUN_TIMEOUT_S = 60.0
READY_TIMEOUT_S = 45.0
END_TIMEOUT_S = 10.0
LABEL = "kvshare.doctor"


class OneOffs:
    """Runs containers of one image; what a run leaves behind is removed with ``remove_leftovers``."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._mark = f"{os.getpid()}"
        self._number = itertools.count(1)

    def run(
        self,
        context: str,
        options: Sequence[str],
        arguments: Sequence[str],
        stdin: str = "",
        timeout_s: float = RUN_TIMEOUT_S,
    ) -> str:
        """Return what a container prints; CouldNotCheckError if it fails or is not done in time."""
        name = self._name()
        try:
            result = subprocess.run(
                self._command(context, name, options, arguments),
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            _remove(context, name)
            raise CouldNotCheckError(f"a container on it did not end in {timeout_s:.0f} s") from None
        if result.returncode != 0:
            raise CouldNotCheckError(docker_cli.reason(_without_usage(result.stderr)))
        return result.stdout

    @contextmanager
    def hold(self, context: str, options: Sequence[str], arguments: Sequence[str]) -> Iterator[str]:
        """Run a container until the block ends; yield the first line that it prints.

        Raises:
            CouldNotCheckError: if it prints none in READY_TIMEOUT_S.
        """
        name = self._name()
        process = subprocess.Popen(
            self._command(context, name, options, arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            yield _first_line(process)
        finally:
            _end(process)
            if process.returncode != 0:
                _remove(context, name)

    def remove_leftovers(self, contexts: Sequence[str]) -> None:
        """Remove whatever of this run's containers is still there."""
        for context in contexts:
            with suppress(CouldNotCheckError):
                label = f"label={LABEL}={self._mark}"
                left = docker_cli.docker(context, "ps", "--all", "--quiet", "--filter", label).split()
                if left:
                    docker_cli.docker(context, "rm", "--force", *left)

    def _name(self) -> str:
        return f"kvshare-doctor-{self._mark}-{next(self._number)}"

    def _command(
        self, context: str, name: str, options: Sequence[str], arguments: Sequence[str]
    ) -> list[str]:
        # --init: without it the kernel keeps the probe's own alarm from ending it.
        fixed = ["--rm", "--interactive", "--init", "--network", "host", "--pull", "never"]
        fixed += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--log-driver", "none"]
        fixed += ["--name", name, "--label", f"{LABEL}={self._mark}"]
        return docker_cli.command(context, "run", *fixed, *options, self._image, *arguments)


def _without_usage(stderr: str) -> str:
    """Return what docker said without its last line, which only points to its help."""
    return "\n".join(
        line for line in stderr.splitlines() if not line.startswith(("See 'docker", "Run 'docker"))
    )


def _first_line(process: subprocess.Popen[str]) -> str:
    """Return a process's first line; CouldNotCheckError if none comes in time or at all."""
    stdout, stderr = process.stdout, process.stderr
    assert stdout is not None
    assert stderr is not None
    line: list[str] = []
    reader = threading.Thread(target=lambda: line.append(stdout.readline()), daemon=True)
    reader.start()
    reader.join(READY_TIMEOUT_S)
    if line and line[0]:
        return line[0]
    if not line:
        process.kill()
        raise CouldNotCheckError(f"a container on it was not ready in {READY_TIMEOUT_S:.0f} s")
    raise CouldNotCheckError(docker_cli.reason(_without_usage(stderr.read())))


def _end(process: subprocess.Popen[str]) -> None:
    """Close a process's input, which ends its container, and wait for it."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove(context: str, name: str) -> None:
    with suppress(CouldNotCheckError):
        docker_cli.docker(context, "rm", "--force", name)
