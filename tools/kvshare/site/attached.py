"""A process in a container, and the one connection that takes words to it and back."""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from kvshare.errors import CouldNotCheckError
from kvshare.site.base import last_line

STDERR = 2
HEADER = struct.Struct(">BxxxL")  # of each piece: which stream it is of, how many bytes it has
READY_TIMEOUT_S = 45.0
END_TIMEOUT_S = 10.0


class EngineError(CouldNotCheckError):
    """An engine refused or did not answer; ``reason`` says why, without its context and what to type."""

    def __init__(self, context: str, reason: str, advice: str = "") -> None:
        super().__init__(f"context {context}: {reason}{advice and f': {advice}'}.")
        self.reason = reason


class ProcessError(EngineError):
    """A process in a container failed; ``reason`` is the last that it said."""


class Attached:
    """What an engine's attach and exec lead to; ``ended`` once it is known to have come to its end."""

    def __init__(self, context: str, stream: Any, exit_code: Callable[[], int]) -> None:
        """Take the raw stream that docker-py hands out.

        It is read through its response's buffer: what came together with the headers lies there, and is lost
        where docker-py reads it (7.2.0).
        """
        self._context, self._exit_code = context, exit_code
        self._response = stream._response
        self._reader = self._response.raw._fp.fp
        self._socket: socket.socket = stream._sock
        self._stderr = b""
        self.ended = False

    def answer(self, said: str, timeout_s: float) -> str:
        """Say all that the process reads, and return what it prints; EngineError if it fails or is late."""
        self._say(said)
        try:
            printed = b"".join(self._stdout(timeout_s))
        except OSError as error:
            raise self._broken(error, f"did not end in {timeout_s:.0f} s") from None
        self.ended = True
        if self._exit_code() != 0:
            raise self._failed()
        return printed.decode(errors="replace")

    def first_line(self) -> str:
        """Return what the process prints first; EngineError if it fails or prints nothing in time."""
        printed = b""
        try:
            for piece in self._stdout(READY_TIMEOUT_S):
                printed += piece
                if b"\n" in printed:
                    return printed.partition(b"\n")[0].decode(errors="replace")
        except OSError as error:
            raise self._broken(error, f"was not ready in {READY_TIMEOUT_S:.0f} s") from None
        raise self._failed()

    def end(self) -> None:
        """End the process's input, and give the process some time to end by that."""
        self._say("")
        try:
            for _ in self._stdout(END_TIMEOUT_S):
                pass
        except OSError:
            return
        self._exit_code()
        self.ended = True

    def close(self) -> None:
        """Leave the process, whatever it does."""
        self._response.close()
        self._socket.close()

    def _say(self, said: str) -> None:
        with suppress(OSError):  # a process that has ended already may still have left its answer
            self._socket.sendall(said.encode())
            self._socket.shutdown(socket.SHUT_WR)

    def _stdout(self, timeout_s: float) -> Iterator[bytes]:
        """Yield pieces of standard output; standard error is kept aside."""
        deadline = time.monotonic() + timeout_s
        while len(header := self._read(HEADER.size, deadline)) == HEADER.size:
            stream, size = HEADER.unpack(header)
            piece = self._read(size, deadline)
            if stream == STDERR:
                self._stderr += piece
            else:
                yield piece

    def _read(self, size: int, deadline: float) -> bytes:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        read: bytes = self._reader.read(size)
        return read

    def _broken(self, error: OSError, late: str) -> EngineError:
        what = late if isinstance(error, TimeoutError) else f"went out of reach ({error.strerror})"
        return EngineError(self._context, f"a process in a container {what}")

    def _failed(self) -> ProcessError:
        return ProcessError(self._context, last_line(self._stderr.decode(errors="replace")))
