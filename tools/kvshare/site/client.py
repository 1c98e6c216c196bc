"""The client container: started on the prefill node's engine; evidence on stdout, progress on stderr."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from typing import TYPE_CHECKING

from kvshare.config import api_key
from kvshare.config.settings import Settings
from kvshare.errors import USAGE, KvshareError
from kvshare.records import loads
from kvshare.site import compose
from kvshare.stack.members import Stack
from kvshare.verify.evidence import Spec, Traffic

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

START_S = 60.0  # for Docker to start and remove the container, on top of the client's own deadline


class ClientFailedError(Exception):
    """The client container gave no evidence; the message is one sentence."""


def command(
    stack: Stack, settings: Settings, subcommand: str, spec: DataclassInstance, *options: str
) -> list[str]:
    """Return the command line that runs ``subcommand`` in the client container on a task.

    Args:
        spec: the task, a data class; it travels as JSON. The API key is expected on standard input.
        options: of `docker compose run`.
    """
    return compose.command(
        stack.prefill.context,
        *("--progress", "quiet", "run", "--rm", "--no-deps", "-T", *options, "client"),
        *(subcommand, "--spec", json.dumps(asdict(spec)), *api_key.arguments(settings.api_key)),
    )


def send(spec: Spec, stack: Stack, settings: Settings) -> Traffic:
    """Run the client container and return what it saw; its progress goes to our stderr as it comes.

    ClientFailedError if it cannot be started or ends without evidence, KvshareError if it refuses the sizes.
    """
    limit = spec.wait_s + spec.deadline_s + START_S
    try:
        result = subprocess.run(
            command(stack, settings, "legs", spec),
            cwd=settings.root,
            env=settings.compose_environment(stack.prefill.context),
            input=settings.api_key,
            stdout=subprocess.PIPE,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        raise ClientFailedError(f"the client container did not end in {limit:.0f} s") from None
    if result.returncode == USAGE:
        raise KvshareError("the client container refused the request, for the reason above.")
    if result.returncode != 0:
        raise ClientFailedError(f"`docker compose run client` ended with code {result.returncode}, see above")
    try:
        return loads(Traffic, result.stdout)
    except ValueError as error:
        raise ClientFailedError(f"the client container's evidence makes no sense: {error}") from None
