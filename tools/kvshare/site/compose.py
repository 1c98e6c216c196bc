"""Docker Compose's own command, for what only Compose can do: resolve, build, start, stop, run the client."""

import json
import re
from collections.abc import Sequence
from typing import Any

from kvshare import records
from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.site.base import last_line
from kvshare.site.contexts import LateError, docker
from kvshare.stack.members import Stack, parse_stack

PLUGIN_TIMEOUT_S = 30


def command(context: str, *arguments: str) -> list[str]:
    """Return a `docker compose` command line that names its context and means every profile."""
    return ["docker", "--context", context, "compose", "--profile", "*", *arguments]


def run(settings: Settings, context: str, subcommand: str, *arguments: str) -> str:
    """Return what a short command prints; CouldNotCheckError carries what it said when it fails."""
    _, *typed = command(context, subcommand, *arguments)
    result = docker(*typed, limit_s=None, cwd=settings.root, env=settings.compose_environment(context))
    if result.returncode != 0:
        reason = last_line(result.stderr)
        raise CouldNotCheckError(f"docker compose {subcommand} failed on context {context}: {reason}.")
    return result.stdout


def read_stack(settings: Settings) -> Stack:
    """Ask Compose for the resolved facts.

    Raises:
        CouldNotCheckError: without Compose, or where it does not answer.
        KvshareError: if Compose or we refuse the settings.
    """
    return parse_stack([resolved_config(settings, node.context) for node in settings.decode_nodes], settings)


def resolved_config(settings: Settings, context: str) -> dict[str, Any]:
    """Return `docker compose config` as a context's machine has it; raises as ``read_stack`` does."""
    _, *typed = command("default", "config", "--format", "json")
    result = docker(*typed, cwd=settings.root, env=settings.compose_environment(context))
    if result.returncode != 0:
        raise KvshareError(f"docker compose config refuses the settings: {last_line(result.stderr)}.")
    config: dict[str, Any] = json.loads(result.stdout)
    return config


def client(context: str, name: str, subcommand: str, task: object, options: Sequence[str]) -> list[str]:
    """Return the command line that runs ``subcommand`` in a client container of that name on a task.

    The task travels as JSON; ``options`` say which keys are expected on standard input.
    """
    return command(
        context,
        *("--progress", "quiet", "run", "--rm", "--no-deps", "-T", "--name", name, "client"),
        *(subcommand, "--spec", records.dumps(task), *options),
    )


def plugin(*arguments: str) -> str:
    """Return the version that this machine's docker command tells so, or '' if it does not."""
    try:
        result = docker(*arguments, limit_s=PLUGIN_TIMEOUT_S)
    except LateError:
        return ""
    version = re.search(r"v?(\d+\.\d+[^\s,]*)", result.stdout)
    return version.group(1) if result.returncode == 0 and version else ""
