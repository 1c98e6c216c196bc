"""Probe of message-defaults: a real controller registers workers that send no peer_init_url."""

from __future__ import annotations

from probes import ProbeError
from probes.controller import free_ports, is_registered, request, running_controller


def probe() -> None:
    """Send both messages without the field; raises ProbeError unless both workers are then registered."""
    ports = free_ports()
    with running_controller(ports):
        for kind, port in (("RegisterMsg", ports.reply), ("HeartbeatMsg", ports.heartbeat)):
            worker = f"old-worker-by-{kind}"
            reply = request(port, _old_message(kind, worker))
            if not is_registered(worker, ports.http):
                raise ProbeError(
                    f"A {kind} without peer_init_url should register its worker, "
                    f"but the controller does not list it and answered {reply}."
                )


def _old_message(kind: str, worker: str) -> dict[str, object]:
    return {"type": kind, "instance_id": worker, "worker_id": 0, "ip": "127.0.0.1", "port": 1}
