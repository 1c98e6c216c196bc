"""Probe of pull-loop: after bad messages on every socket of the controller, each still does its work."""

from __future__ import annotations

import json
import time

import zmq

from probes import ProbeError
from probes.controller import Ports, free_ports, get, is_registered, running_controller
from probes.noise import bad_messages, send
from probes.stand_in import StandIn

WORKER = "kvshare-probe"
ADMITTED_WITHIN_S = 5.0


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
    deadline = time.monotonic() + ADMITTED_WITHIN_S
    while _key_count(ports) != 1:
        if time.monotonic() > deadline:
            raise ProbeError("After bad messages on the pull socket no key is admitted.")
        time.sleep(0.1)


def _check_metric(ports: Ports) -> None:
    with get(ports.http, "/metrics") as page:
        lines = page.read().decode().splitlines()
    for socket in ("pull", "reply", "heartbeat"):
        name = f'lmcache:rejected_messages_total{{socket="{socket}"}}'
        found = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)]
        if not found or found[0] < len(bad_messages()):
            raise ProbeError(f"{name} should count {len(bad_messages())} bad messages, but is {found}.")


def _key_count(ports: Ports) -> int:
    with get(ports.http, f"/controller/workers?instance_id={WORKER}") as answer:
        return int(json.load(answer)["workers"][0]["key_count"])
