"""Messages that cannot be read, on every ZMQ port: nothing stops, and all are counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvshare import metrics
from kvshare.openai import Http
from tests.conftest import ROOT
from tests.rig import engines
from tests.rig.network import DECODE, PREFILL, Host
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import HOST_OF, Stack
from tests.scenarios.under_faults.traffic import CONTROLLER, PORTS, Traffic, as_operator

HERE = Path(__file__).parent
# Each socket by the name under which its messages are counted, and how it is spoken to.
CONTROLLERS = (("pull", "push", 8300), ("reply", "dealer", 8400), ("heartbeat", "dealer", 8600))
SERVERS = {
    PREFILL: (("worker", "dealer", 8500), ("p2p_init", "dealer", 8200), ("p2p_lookup", "dealer", 8201)),
    DECODE: (("worker", "dealer", 8501), ("p2p_init", "dealer", 8202), ("p2p_lookup", "dealer", 8203)),
}

pytestmark = pytest.mark.timeout(900)


def send_noise(role: str, host: Host, port: int) -> int:
    """Send from the decode machine; returns the number of messages."""
    sent = engines.docker(
        DECODE, "run", "--rm", "--network=host", "--entrypoint=python",
        f"--volume={ROOT / 'docker/patches'}:/patches:ro", f"--volume={HERE}:/noise:ro",
        "--env=PYTHONPATH=/patches", engines.IMAGES[0], "/noise/noise.py", role, host.address, str(port),
    )  # fmt: skip
    return int(sent)


def counted(base: str) -> dict[str, float]:
    """Rejected messages by socket, as a process's metrics tell."""
    samples = metrics.parse(as_operator(lambda: Http(base).get("/metrics", timeout=10).text))
    return {s.labels["socket"]: s.value for s in samples if s.name == "lmcache:rejected_messages_total"}


def test_bad_messages_stop_nothing_and_are_counted(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    bases = {host: f"http://{host.address}:{port}" for host, port in PORTS.items()}
    targets = [(CONTROLLER, PREFILL, *one) for one in CONTROLLERS]
    targets += [(bases[host], host, *one) for host, sockets in SERVERS.items() for one in sockets]
    rounds, injected, missing = (5 if long else 1), 0, []
    pool = traffic.know(6)
    with stack.survivors(*HOST_OF), traffic.running((PREFILL, DECODE), pool):
        for _ in range(rounds):
            for base, host, socket, role, port in targets:
                before = counted(base).get(socket, 0)
                number = send_noise(role, host, port)
                injected += number
                if counted(base).get(socket, 0) < before + number:
                    missing.append((host.name, socket))
    recovery = traffic.seconds_until_reuse(30)
    seen = record(figures.of(HERE, f"{len(targets)} ports", injected, traffic.sent, recovery))
    assert not missing, "these sockets did not count what they could not read"
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert stack.verify().code == 0
