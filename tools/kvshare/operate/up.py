"""Start a node and wait until it is healthy."""

import time
from collections.abc import Mapping

import click

from kvshare.config import cluster_key
from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from kvshare.progress import step
from kvshare.site import compose, images
from kvshare.site.base import State
from kvshare.site.containers import Containers
from kvshare.site.engine import engine
from kvshare.stack.members import Member, Stack, by_context, members_of

LOG_LINES = 15
POLL_S = 1.0
ENDED = ("exited", "dead", "restarting")  # by itself; `restart: unless-stopped` would only repeat it


def start(settings: Settings, stack: Stack, node: str, timeout_s: float) -> None:
    """Start a node's services and wait until all are healthy.

    Raises:
        KvshareError: if an image is missing, or a service gives up or is not healthy in time; with its last
            log lines.
        CouldNotCheckError: if an engine does not answer.
    """
    members = members_of(stack, node)
    site = Containers(stack, settings, members)
    for context, services in by_context(members).items():
        # The client runs beside prefill, at the first verification.
        client = [images.CLIENT] if context == stack.prefill.context else []
        if missing := images.missing(settings, context, [*services, *client]):
            how = _how_to_get_it(settings, node)
            raise KvshareError(f"context {context} has no image {missing[0]}: {how}, then this again.")
    _make_cluster_key(settings)
    # All machines first, then the wait: each loads its model while the others do.
    for context, services in by_context(members).items():
        with step(f"Start {', '.join(services)} on context {context}"):
            # Orphans: of the other way of sharing, on the same ports.
            compose.run(settings, context, "up", "--detach", "--no-build", "--remove-orphans", *services)
    wait_until_healthy(site, timeout_s)


def _make_cluster_key(settings: Settings) -> None:
    """Before the first start, where .env leaves it to us."""
    path = settings.cluster_key_file
    if settings.wants_cluster_key and cluster_key.make(path):
        click.echo(f"kvshare: made the cluster's key, {path}; keep it with .env", err=True)


def _how_to_get_it(settings: Settings, node: str) -> str:
    elsewhere = "make pull" if settings.get("REGISTRY") else "make ship"
    return f"type make image NODE={node}, or {elsewhere} NODE={node} if it is built already"


def _look(site: Containers) -> Mapping[str, State]:
    """Return how the members are; CouldNotCheckError for the first engine that does not say."""
    found = site.look()
    for error in site.silent.values():
        raise error
    return found


def wait_until_healthy(site: Containers, timeout_s: float) -> None:
    """Return once the site's members are; KvshareError for one that ends, or is not in time."""
    names = [member.name for member in site.members]
    with step(f"Wait until {', '.join(names)} {'is' if len(names) == 1 else 'are'} healthy") as current:
        while True:
            found = _look(site)
            waiting = [m for m in site.members if not (m.name in found and found[m.name].is_healthy)]
            if not waiting:
                return
            for member in waiting:
                if member.name in found and found[member.name].status in ENDED:
                    _give_up(site, member, "ended by itself")
            if current.seconds > timeout_s:
                said = found[waiting[0].name].last_check if waiting[0].name in found else ""
                why = f", as its health check says: {said}" if said else ""
                _give_up(site, waiting[0], f"was not healthy within {timeout_s:.0f} s{why}")
            current.detail(f"waiting for {', '.join(member.name for member in waiting)}")
            time.sleep(POLL_S)


def _give_up(site: Containers, member: Member, what: str) -> None:
    raise KvshareError(
        f"{member.name} on context {member.context} {what}; its last log lines:\n"
        f"{engine(member.context).log(site.container(member), tail=LOG_LINES).rstrip()}\n"
        f"See more: docker --context {member.context} compose logs {member.service}"
    )
