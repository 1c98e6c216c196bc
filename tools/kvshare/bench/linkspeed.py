"""The link under the KV transfer, measured by the engine image's own probe, the one that doctor uses.

It runs inside the two servers' containers, with the UCX settings that they run with, from the owner (prefill)
to the one that asks (decode): that is the way the KV goes.
"""

from __future__ import annotations

import selectors
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kvshare import records
from kvshare.bench.gather import Containers
from kvshare.bench.results import Link
from kvshare.contract import Measurement, Ports
from kvshare.errors import CouldNotCheckError
from kvshare.site import docker_cli
from kvshare.stack.members import Server

PROBE = ("python", "-m", "kvshare_engine", "probe")
START_S, MEASURE_S, END_S = 30.0, 150.0, 10.0
NO_PROBE = "the engine image has no probe for it: type make image"


def measure(containers: Containers, prints: Mapping[str, Mapping[str, Any]]) -> Link:
    """Return the link's speed; where it cannot be measured, the reason instead."""
    prefill, decode = containers.stack.prefill, containers.stack.decode
    settings = [f"{name}={value}" for name, value in sorted(_ucx(prints.get(prefill.name, {})).items())]
    try:
        with _far_end(containers, decode, _ucx(prints.get(decode.name, {}))) as ports:
            lanes = ",".join(map(str, ports.bandwidth))
            command = (*PROBE, "link-measure", decode.host, lanes, str(ports.latency))
            said = _near_end(containers, prefill, _ucx(prints.get(prefill.name, {})), command)
            found = records.loads(Measurement, said)
    except CouldNotCheckError as failure:
        return Link(None, "", failure.message.rstrip("."))
    except ValueError:
        return Link(None, "", NO_PROBE)
    if found.error or not found.bytes_per_s:
        return Link(None, "", found.error or "the probe gave no figure")
    return Link(found.bytes_per_s / 1e9, f"ucx_perftest, {' '.join(settings)}")


def _ucx(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in fingerprint.get("ucx", {}).items()}


def _exec(containers: Containers, member: Server, ucx: Mapping[str, str]) -> tuple[str, ...]:
    variables = [f"--env={name}={value}" for name, value in ucx.items()]
    return ("exec", "--interactive", *variables, containers.container_id(member))


def _near_end(
    containers: Containers, member: Server, ucx: Mapping[str, str], command: tuple[str, ...]
) -> str:
    arguments = (*_exec(containers, member, ucx), *command)
    return docker_cli.docker(member.context, *arguments, timeout_s=MEASURE_S)


@contextmanager
def _far_end(containers: Containers, member: Server, ucx: Mapping[str, str]) -> Iterator[Ports]:
    """The probe that waits on the other machine; it ends when its standard input closes."""
    arguments = (*_exec(containers, member, ucx), *PROBE, "link-serve")
    process = subprocess.Popen(
        docker_cli.command(member.context, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is ours to handle
    )
    try:
        yield records.loads(Ports, _first_line(process))
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _first_line(process: subprocess.Popen[str]) -> str:
    """Return what the far end says first, or '' if it says nothing in time."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(START_S) else ""
