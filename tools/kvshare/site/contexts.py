"""Docker contexts: where each leads, and which engine answers there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kvshare.errors import CouldNotCheckError, KvshareError

DOCKER_TIMEOUT_S = 60
ANSWER_TIMEOUT_S = 20  # for an engine to say who it is; docker tells ssh to try for 30 s, and tries it twice
MINIMUM_ENGINE = (25, 0)  # compose.yaml uses start_interval


@dataclass(frozen=True)
class Endpoint:
    """Where a context leads, such as ``unix://…`` or ``ssh://…``, and the folder of its certificates."""

    context: str
    address: str
    tls_folder: Path
    skip_tls_verify: bool

    @property
    def is_local(self) -> bool:
        """Whether the engine is this machine's: its endpoint is a Unix socket."""
        return self.address.startswith("unix://")


@dataclass(frozen=True)
class Engine:
    """The Docker engine behind a context; ``host`` is what its machine calls itself."""

    context: str
    host: str
    version: str


def resolve(context: str) -> Endpoint:
    """Return where a context leads; KvshareError if Docker knows no such context."""
    command = ["docker", "context", "inspect", context, "--format", "{{json .}}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DOCKER_TIMEOUT_S)
    if result.returncode != 0:
        raise KvshareError(f"Docker has no context {context}: type docker context ls, and correct .env.")
    described = json.loads(result.stdout)
    endpoint = described["Endpoints"]["docker"]
    folder = Path(described["Storage"]["TLSPath"]) / "docker"
    return Endpoint(context, endpoint["Host"], folder, endpoint.get("SkipTLSVerify", False))


def read_engine(context: str) -> Engine:
    """Return the engine behind a context.

    Raises:
        KvshareError: if there is no such context, its host's key is unknown, or the engine is too old.
        CouldNotCheckError: if no engine answers.
    """
    found = read_info(context)
    engine = Engine(context, found["Name"], found["ServerVersion"])
    if version_of(engine.version) < MINIMUM_ENGINE:
        wanted = ".".join(map(str, MINIMUM_ENGINE))
        raise KvshareError(
            f"context {context}: expected Docker Engine {wanted} or newer on {engine.host} and found "
            f"{engine.version}: upgrade it there, e.g. with make setup in a clone on that machine."
        )
    return engine


def read_info(context: str) -> dict[str, Any]:
    """Return what `docker info` says of an engine, whatever its version; raises as ``read_engine``."""
    endpoint = resolve(context)
    command = ["docker", "--context", context, "info", "--format", "{{json .}}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise _no_answer(endpoint, f"nothing within {ANSWER_TIMEOUT_S} s") from None
    found: dict[str, Any] = json.loads(result.stdout) if result.stdout.startswith("{") else {}
    if not found.get("ServerVersion"):
        raise _no_answer(endpoint, result.stderr or "; ".join(found.get("ServerErrors") or ()))
    return found


def read_engines(contexts: Iterable[str]) -> tuple[Engine, ...]:
    """Return the engine of each context, each asked once; raises as ``read_engine`` does."""
    return tuple(read_engine(context) for context in dict.fromkeys(contexts))


def version_of(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version such as ``26.1.5+dfsg1``."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()


def quiet_ssh_environment() -> dict[str, str]:
    """Return an environment in which ssh never asks on the terminal: it would hang under a spinner."""
    return {"SSH_ASKPASS": "/bin/false", "SSH_ASKPASS_REQUIRE": "force", **os.environ}


def _no_answer(endpoint: Endpoint, said: str) -> KvshareError:
    if "Host key verification failed" in said or "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        url = urlsplit(endpoint.address)
        port = f" -p {url.port}" if url.port else ""
        return KvshareError(
            f"context {endpoint.context}: ssh does not know the host key of {url.hostname}: type "
            f"ssh-keyscan{port} {url.hostname} >> ~/.ssh/known_hosts, and compare the key with that "
            "machine's "
            "own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)."
        )
    reason = " ".join(said.split())[-300:] or "no reason given"
    return CouldNotCheckError(
        f"context {endpoint.context}: no Docker engine answers at {endpoint.address} ({reason}): "
        f"type docker --context {endpoint.context} version."
    )
