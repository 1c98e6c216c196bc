"""The docker command, one explicit context a call; what it says when it fails becomes a sentence."""

from __future__ import annotations

import subprocess

from kvshare.errors import CouldNotCheckError

TIMEOUT_S = 60.0


def command(context: str, *arguments: str) -> list[str]:
    """Return a `docker` command line that names its context."""
    return ["docker", "--context", context, *arguments]


def docker(context: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> str:
    """Return what a short command prints; CouldNotCheckError says where it failed and why."""
    try:
        result = subprocess.run(
            command(context, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except FileNotFoundError:
        raise CouldNotCheckError("docker is not installed here: type make setup.") from None
    except subprocess.TimeoutExpired:
        raise CouldNotCheckError(
            f"context {context}: docker {arguments[0]} did not end in {timeout_s:.0f} s."
        ) from None
    if result.returncode != 0:
        raise CouldNotCheckError(f"context {context}: {reason(result.stderr)}.")
    return result.stdout


def reason(stderr: str) -> str:
    """Return the last thing that a failed command said, on one line and without a full stop."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return " ".join((lines or ["no reason given"])[-1].split())[-400:].rstrip(".")
