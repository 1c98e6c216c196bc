"""Docker contexts: where each leads."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kvshare.errors import CouldNotCheckError, KvshareError

SHARED_SSH = Path(__file__).with_name("bin")
DOCKER_TIMEOUT_S = 60
MINIMUM_ENGINE = (25, 0)  # compose.yaml uses start_interval


class LateError(CouldNotCheckError):
    """The docker command took too long."""


@dataclass(frozen=True)
class Endpoint:
    """Where a context leads, such as ``unix://…`` or ``ssh://…``."""

    address: str

    @property
    def is_local(self) -> bool:
        """Whether the engine is this machine's: its endpoint is a Unix socket."""
        return self.address.startswith("unix://")


def docker(
    *arguments: str, limit_s: int | None = DOCKER_TIMEOUT_S, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Return what this machine's docker command came to; CouldNotCheckError without one, or if it is late."""
    try:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=limit_s, **more)
    except FileNotFoundError:
        raise CouldNotCheckError("docker is not installed here: type make setup, or make demo.") from None
    except subprocess.TimeoutExpired:
        raise LateError(f"docker {' '.join(arguments[:2])} did not end in {limit_s} s.") from None


def resolve(context: str) -> Endpoint:
    """Return where a context leads; KvshareError if Docker knows no such context."""
    result = docker("context", "inspect", context, "--format", "{{json .}}")
    if result.returncode != 0:
        raise KvshareError(f"Docker has no context {context}: type docker context ls, and correct .env.")
    return Endpoint(json.loads(result.stdout)["Endpoints"]["docker"]["Host"])


def version_of(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version such as ``26.1.5+dfsg1``."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()


def ssh_environment() -> dict[str, str]:
    """Return an environment in which the docker command's ssh shares one connection a host (bin/ssh).

    It never asks on the terminal: it would hang under a spinner.
    """
    path = os.environ.get("PATH", os.defpath).removeprefix(f"{SHARED_SSH}:")
    quiet = {"SSH_ASKPASS": "/bin/false", "SSH_ASKPASS_REQUIRE": "force"}
    return {**quiet, **os.environ, "PATH": f"{SHARED_SSH}:{path}"}


def seconds_of(timestamp: str) -> float:
    """Return seconds since 1970 of an engine's RFC 3339 time."""
    return datetime.fromisoformat(timestamp).timestamp()
