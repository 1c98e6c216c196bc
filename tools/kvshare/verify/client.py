"""The client container sends a verification's traffic, or a canary's, and says what it saw."""

import subprocess
from typing import TypeVar

from kvshare.errors import USAGE, KvshareError
from kvshare.records import loads
from kvshare.site.base import Site
from kvshare.verify.canary import Finding, Pair
from kvshare.verify.evidence import Spec, Traffic

T = TypeVar("T")
START_S = 60.0  # for Docker to start and remove the container, on top of the client's own deadline
CANARY_S = 300.0


class ClientFailedError(Exception):
    """The client container gave no evidence; the message is one sentence."""


def send(site: Site, spec: Spec) -> Traffic:
    """Run the client and return what it saw; its progress goes to our stderr as it comes.

    ClientFailedError if it cannot be started or ends without evidence, KvshareError if it refuses the sizes.
    """
    limit = spec.wait_s + spec.deadline_s * (2 if spec.deep else 1) + START_S
    return _told(site, "legs", spec, Traffic, limit)


def sing(site: Site, pair: Pair) -> Finding:
    """Run one canary in the client and return how it ended; raises as ``send`` does."""
    return _told(site, "canary-client", pair, Finding, CANARY_S + START_S)


def _told(site: Site, subcommand: str, task: object, kind: type[T], limit: float) -> T:
    """Return what the client prints of a task."""
    with site.client(subcommand, task) as process:
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise ClientFailedError(f"the client container did not end in {limit:.0f} s") from None
    if process.returncode == USAGE:
        raise KvshareError("the client container refused the request, for the reason above.")
    if process.returncode != 0:
        raise ClientFailedError(
            f"`docker compose run client` ended with code {process.returncode}, see above"
        )
    try:
        return loads(kind, said)
    except ValueError as error:
        raise ClientFailedError(f"the client container's evidence makes no sense: {error}") from None
