"""What an engine says of itself, and the operator's machine of its plugins."""

import time
from dataclasses import replace

import psutil

from kvshare.doctor.evidence import Clock, Engine, Operator
from kvshare.errors import KvshareError
from kvshare.site import compose, contexts, images
from kvshare.site.engine import engine

CLOCK_READINGS = 3


def look(context: str, image: str, project: str) -> Engine:
    """Return the engine of a context; KvshareError if it does not answer."""
    about = engine(context).about()
    bare = Engine(
        context, machine=about.host, version=about.version, runtimes=about.runtimes, apart=about.apart
    )
    if contexts.version_of(about.version) < contexts.MINIMUM_ENGINE:
        return bare  # it would refuse to say more
    return replace(
        bare,
        image=images.find(context, image),
        folder=about.root,
        running=running(context, project),
        clock=read_clock(context),
    )


def volumes(context: str) -> tuple[str, ...]:
    """Return the names of an engine's volumes."""
    return engine(context).volumes()


def read_clock(context: str) -> Clock | None:
    """Return how far an engine's clock is ahead of ours: half of the quickest answer's time is its error."""
    readings = []
    try:
        for _ in range(CLOCK_READINGS):
            before, started = time.time(), time.monotonic()
            told = engine(context).about().clock_s
            half = (time.monotonic() - started) / 2
            readings.append(Clock(told - before - half, half))
    except KvshareError:
        return None
    return min(readings, key=lambda clock: clock.uncertain_s)


def operator() -> Operator:
    """Return what this machine's docker command can do."""
    held = psutil.net_if_addrs()
    return Operator(
        compose=compose.plugin("compose", "version", "--short"),
        buildx=compose.plugin("buildx", "version"),
        addresses=tuple(entry.address for entries in held.values() for entry in entries),
    )


def running(context: str, project: str) -> tuple[str, ...]:
    """Return the services of the stack that run on an engine, however they do."""
    found = engine(context).containers(project)
    return tuple(service for service, described in found.items() if described["State"]["Status"] == "running")
