"""The client container sends a verification's traffic and says what it saw."""

from __future__ import annotations

import subprocess

from kvshare.config.settings import Settings
from kvshare.errors import USAGE, KvshareError
from kvshare.records import loads
from kvshare.site import client
from kvshare.stack.members import Stack
from kvshare.verify.evidence import Spec, Traffic

START_S = 60.0  # for Docker to start and remove the container, on top of the client's own deadline


class ClientFailedError(Exception):
    """The client container gave no evidence; the message is one sentence."""


def send(spec: Spec, stack: Stack, settings: Settings) -> Traffic:
    """Run the client container and return what it saw; its progress goes to our stderr as it comes.

    ClientFailedError if it cannot be started or ends without evidence, KvshareError if it refuses the sizes.
    """
    limit = spec.wait_s + spec.deadline_s + START_S
    try:
        result = subprocess.run(
            client.command(stack, settings, "legs", spec),
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
