"""Processes that have LMCache imported already: each is forked from a server that imported it once.

To import PyTorch and LMCache takes a process longer than most probes take a node.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from probes import ProbeError, happens

# What LMCache, NIXL and UCX read; the server hands it on to every process.
ENVIRONMENT = {"PYTHONHASHSEED": "123", "UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}
STOP_TIMEOUT_S = 10.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["probes.preload"])


class Fork:
    """A process that runs a function, which is given one end of a connection, and the other end of it."""

    def __init__(self, run: Callable[..., None], *arguments: Any) -> None:
        self.log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115  (closed with the process)
        self.connection, theirs = _FORKS.Pipe()
        self.process = _FORKS.Process(
            target=_enter, args=(self.log.name, run, theirs, arguments), daemon=True
        )
        _start_server()
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def answer(self, seconds: float | None = None) -> Any:
        """What the process sends next; raises ProbeError if it ends before, or sends nothing in that time."""
        with contextlib.suppress(EOFError, OSError):
            if self.connection.poll(seconds):
                return self.connection.recv()
        raise ProbeError(f"A process should have answered; its last lines:\n{self.last_lines()}")

    def ask(self, command: str, arguments: dict[str, Any], who: str) -> Any:
        """What a process that obeys commands answers to one; raises ProbeError if it has died."""
        try:
            self.connection.send((command, arguments))
            return self.connection.recv()
        except (EOFError, OSError):
            raise ProbeError(f"{who} ended while asked to {command}:\n{self.last_lines()}") from None

    def logged(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def last_lines(self) -> str:
        return "\n".join(self.logged().splitlines()[-15:])

    def pause(self) -> None:
        pause(self.pid)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def pause(pid: int) -> None:
    """Stop a process; wait until all its threads stand still: on a busy machine they run on for a while."""
    os.kill(pid, signal.SIGSTOP)
    if not happens(lambda: _stands_still(pid)):
        raise ProbeError(f"Process {pid} should have stopped.")


def _stands_still(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    try:
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)
    except OSError:  # one ended meanwhile
        return False


def _start_server() -> None:
    """Start the server if it is not there yet, in the environment that its processes shall have."""
    paths = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    os.environ.update(ENVIRONMENT, PYTHONPATH=os.pathsep.join(path for path in paths if path))
    forkserver.ensure_running()


def _enter(log: str, run: Callable[..., None], connection: Connection, arguments: tuple[Any, ...]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for output in (1, 2):
        os.dup2(descriptor, output)
    code = 1
    try:
        run(connection, *arguments)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)  # LMCache's threads do not end
