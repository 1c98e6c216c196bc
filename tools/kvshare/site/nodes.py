"""What the engines say of the stack's containers: each engine asked once, all at the same time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from kvshare.errors import KvshareError
from kvshare.site import contexts, docker_cli
from kvshare.stack.members import Member, Stack

T = TypeVar("T")
FETCH_TIMEOUT_S = 30.0
_FETCH = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout=10).read())"


@dataclass(frozen=True)
class Look:
    """Containers as `docker inspect` has them, by context and service; engines that gave none, and why."""

    containers: Mapping[tuple[str, str], dict[str, Any]]
    errors: Mapping[str, str]

    def of(self, member: Member) -> dict[str, Any] | None:
        """Return a member's container, or None."""
        return self.containers.get((member.context, member.service))


def look(stack: Stack) -> Look:
    """Return every container of the stack; an engine that does not answer is an entry, not an exception."""
    found, errors = at_once(lambda context: _containers(context, stack.project), stack.contexts)
    containers = {
        (context, service): inspected
        for context, services in found.items()
        for service, inspected in services.items()
    }
    return Look(containers, errors)


def at_once(ask: Callable[[str], T], names: Iterable[str]) -> tuple[dict[str, T], dict[str, str]]:
    """Ask for every name in a thread of its own; return the answers, and of those that failed a sentence."""
    answers: dict[str, T] = {}
    errors: dict[str, str] = {}

    def one(name: str) -> None:
        try:
            answers[name] = ask(name)
        except KvshareError as error:
            errors[name] = error.message

    names = list(names)
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        list(pool.map(one, names))
    return {n: answers[n] for n in names if n in answers}, {n: errors[n] for n in names if n in errors}


def fetch(context: str, container: str, url: str) -> str:
    """Return what a URL answers, asked from inside a container; CouldNotCheckError if it does not."""
    command = ("exec", container, "python", "-c", _FETCH, url)
    return docker_cli.docker(context, *command, timeout_s=FETCH_TIMEOUT_S)


def _containers(context: str, project: str) -> dict[str, dict[str, Any]]:
    """Return the project's containers on a context by service; those of `compose run` are left out."""
    contexts.read_engine(context)
    labels = (f"com.docker.compose.project={project}", "com.docker.compose.oneoff=False")
    filters = [argument for label in labels for argument in ("--filter", f"label={label}")]
    ids = docker_cli.docker(context, "ps", "--all", "--quiet", *filters).split()
    if not ids:
        return {}
    inspected = json.loads(docker_cli.docker(context, "inspect", *ids))
    return {found["Config"]["Labels"]["com.docker.compose.service"]: found for found in inspected}
