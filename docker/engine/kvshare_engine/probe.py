"""`python -m kvshare_engine probe …`: what doctor and bench ask of a machine, from a container on it.

    probe facts                        this machine, and how a server would be configured on it
    probe hardware [DEVICE]            what a server computes with, and sends on where UCX was told DEVICE
    probe listen HOST:PORT …           hold those ports
    probe dial HOST:PORT …             whether each can be reached
    probe link-serve                   the far end of a measurement of the link
    probe link-measure HOST BW LATENCY   the near end, towards the ports that the far end named (BW: N,M,…)

Each prints one line of JSON and ends by itself after LIMIT_S; `listen` and `link-serve` go on until standard
input closes, so that they end with whoever started them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

from kvshare.contract import Ports
from kvshare_engine import facts, hardware, link, reach, transport
from kvshare_engine.environment import Controller, Server, refuse

LIMIT_S = 150
TIMED_OUT = 124  # as timeout(1) has it


def run(arguments: list[str]) -> None:
    """Do what the arguments name; an unknown one ends the container with a sentence."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(TIMED_OUT))
    signal.alarm(LIMIT_S)
    os.environ.update(transport.of_bridges(os.environ.get("UCX_NET_DEVICES", "")))
    match arguments:
        case ["facts"]:
            task = json.loads(sys.stdin.read() or "{}")
            server, controller = Server.from_environment(), Controller.from_environment()
            _say(asdict(facts.gather(server, controller, task.get("hub_token", ""))))
        case ["hardware", *device]:
            _say(asdict(hardware.look("".join(device))))
        case ["listen", *endpoints]:
            with reach.listening([reach.endpoint(text) for text in endpoints]) as held:
                _say(asdict(held))
                sys.stdin.read()
        case ["dial", *endpoints]:
            _say([asdict(answer) for answer in reach.dial([reach.endpoint(text) for text in endpoints])])
        case ["link-serve"]:
            with link.serving() as ports:
                _say(asdict(ports))
                sys.stdin.read()
        case ["link-measure", host, bandwidth, latency]:
            lanes = tuple(map(int, bandwidth.split(",")))
            _say(asdict(link.measure(host, Ports(lanes, int(latency)))))
        case _:
            refuse(f"expected a probe, see kvshare_engine/probe.py, and found '{' '.join(arguments)}'")


def _say(what: Any) -> None:
    print(json.dumps(what), flush=True)
