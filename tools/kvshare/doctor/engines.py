"""What an engine says of itself, and the operator's machine of its plugins."""

from __future__ import annotations

import re
import subprocess
import time
from datetime import datetime

import psutil

from kvshare.doctor.evidence import Clock, Engine, Operator
from kvshare.errors import CouldNotCheckError
from kvshare.site import contexts, docker_cli, images
from kvshare.site import engines as sdk

CLOCK_READINGS = 3
PLUGIN_TIMEOUT_S = 30


def look(context: str, image: str, project: str) -> Engine:
    """Return the engine of a context; KvshareError if it does not answer."""
    info = contexts.read_info(context)
    return Engine(
        context=context,
        machine=str(info["Name"]),
        version=str(info["ServerVersion"]),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        image=images.find(context, image),
        folder=str(info["DockerRootDir"]),
        running=running(context, project),
        clock=read_clock(context),
    )


def volumes(context: str) -> tuple[str, ...]:
    """Return the names of an engine's volumes."""
    return tuple(docker_cli.docker(context, "volume", "ls", "--quiet").split())


def read_clock(context: str) -> Clock | None:
    """Return how far an engine's clock is ahead of ours: half of the quickest answer's time is its error."""
    try:
        client = sdk.connect(context)
    except sdk.ENGINE_ERRORS:
        return None
    readings = []
    try:
        for _ in range(CLOCK_READINGS):
            before, started = time.time(), time.monotonic()
            told = _seconds(client.info()["SystemTime"])
            half = (time.monotonic() - started) / 2
            readings.append(Clock(told - before - half, half))
    except (*sdk.ENGINE_ERRORS, KeyError, ValueError):
        return None
    finally:
        client.close()
    return min(readings, key=lambda clock: clock.uncertain_s)


def operator() -> Operator:
    """Return what this machine's docker command can do."""
    held = psutil.net_if_addrs()
    return Operator(
        compose=_plugin("compose", "version", "--short"),
        buildx=_plugin("buildx", "version"),
        addresses=tuple(entry.address for entries in held.values() for entry in entries),
    )


def running(context: str, project: str) -> tuple[str, ...]:
    """Return the services of the stack that run on an engine, however they do."""
    wanted = (
        "status=running",
        f"label=com.docker.compose.project={project}",
        "label=com.docker.compose.oneoff=False",
    )
    filters = [argument for one in wanted for argument in ("--filter", one)]
    form = '{{.Label "com.docker.compose.service"}}'
    return tuple(docker_cli.docker(context, "ps", "--format", form, *filters).split())


def _plugin(*arguments: str) -> str:
    try:
        result = subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, timeout=PLUGIN_TIMEOUT_S
        )
    except FileNotFoundError:
        raise CouldNotCheckError("docker is not installed here: type make setup.") from None
    except subprocess.TimeoutExpired:
        return ""
    version = re.search(r"v?(\d+\.\d+\S*)", result.stdout)
    return version.group(1) if result.returncode == 0 and version else ""


def _seconds(timestamp: str) -> float:
    """Return seconds since 1970 of an engine's RFC 3339 time, whose fraction may have nine digits."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", timestamp)).timestamp()
