"""Docker contexts: where each leads."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from datetime import datetime

from kvshare.errors import CouldNotCheckError, KvshareError

DOCKER_TIMEOUT_S = 60
MINIMUM_ENGINE = (25, 0)  # compose.yaml uses start_interval


@dataclass(frozen=True)
class Endpoint:
    """Where a context leads, such as ``unix://…`` or ``ssh://…``."""

    address: str

    @property
    def is_local(self) -> bool:
        """Whether the engine is this machine's: its endpoint is a Unix socket."""
        return self.address.startswith("unix://")


def resolve(context: str) -> Endpoint:
    """Return where a context leads; KvshareError if Docker knows no such context."""
    command = ["docker", "context", "inspect", context, "--format", "{{json .}}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=DOCKER_TIMEOUT_S)
    except FileNotFoundError:
        raise CouldNotCheckError("docker is not installed here: type make setup.") from None
    except subprocess.TimeoutExpired:
        raise CouldNotCheckError(f"docker context inspect did not end in {DOCKER_TIMEOUT_S} s.") from None
    if result.returncode != 0:
        raise KvshareError(f"Docker has no context {context}: type docker context ls, and correct .env.")
    return Endpoint(json.loads(result.stdout)["Endpoints"]["docker"]["Host"])


def version_of(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version such as ``26.1.5+dfsg1``."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()


def quiet_ssh_environment() -> dict[str, str]:
    """Return an environment in which ssh never asks on the terminal: it would hang under a spinner."""
    return {"SSH_ASKPASS": "/bin/false", "SSH_ASKPASS_REQUIRE": "force", **os.environ}


def seconds_of(timestamp: str) -> float:
    """Return seconds since 1970 of an engine's RFC 3339 time."""
    return datetime.fromisoformat(timestamp).timestamp()
