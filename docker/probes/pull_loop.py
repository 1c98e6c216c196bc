"""Probe of pull-loop: after bad messages on every socket of the controller, each still does its work."""

from __future__ import annotations

import json

import zmq

from probes import ProbeError, happens
from probes.controller import Ports, free_ports, get, is_registered, running_controller
from probes.noise import bad_messages, send
from probes.stand_in import StandIn

WORKER = "kvshare-probe"


def probe() -> None:
    """Register, admit a key and beat after the bad messages; raises ProbeError unless all three work."""
    ports = free_ports()
    with running_controller(ports):
        send(ports.pull, zmq.PUSH, *([message] for message in bad_messages()))
        for port in (ports.reply, ports.heartbeat):
            send(port, zmq.DEALER, *([b"", message] for message in bad_messages()), [b"one frame"])
        worker = StandIn(ports, WORKER)
        answer = worker.register()
        if not is_registered(WORKER, ports.http):
            raise ProbeError(f"After bad messages on the reply socket no worker can register: {answer}.")
        worker.report([7])
        _check_pull(ports)
        answer = worker.beat()
        if not isinstance(answer, dict) or answer.get("type") != "HeartbeatRetMsg":
            raise ProbeError(f"After bad messages on the heartbeat socket a heartbeat gets {answer}.")
        _check_metric(ports)


def _check_pull(ports: Ports) -> None:
    if not happens(lambda: _key_count(ports) == 1):
        raise ProbeError("After bad messages on the pull socket no key is admitted.")


def _check_metric(ports: Ports) -> None:
    for socket in ("pull", "reply", "heartbeat"):
        if not happens(lambda socket=socket: _rejected(ports, socket) >= len(bad_messages())):  # type: ignore[misc]
            raise ProbeError(
                f"The metric should count {len(bad_messages())} bad messages on {socket}, "
                f"but says {_rejected(ports, socket)}."
            )


def _rejected(ports: Ports, socket: str) -> float:
    name = f'lmcache:rejected_messages_total{{socket="{socket}"}}'
    with get(ports.http, "/metrics") as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def _key_count(ports: Ports) -> int:
    with get(ports.http, f"/controller/workers?instance_id={WORKER}") as answer:
        return int(json.load(answer)["workers"][0]["key_count"])
