"""Messages that cannot be read, on every ZMQ port: nothing stops, and all are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kvshare.config import cluster_key
from kvshare.servers.wait import poll
from tests.conftest import ROOT
from tests.rig import engines
from tests.rig.network import DECODE, PREFILL
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import HOST_OF, Socket, Stack
from tests.scenarios.under_faults.traffic import Traffic

HERE = Path(__file__).parent
ROUNDS_LONG = 5
COUNTED_S = 10  # one that is read at all is counted by then

pytestmark = pytest.mark.timeout(900)


def send_noise(sockets: Sequence[Socket]) -> dict[Socket, int]:
    """Send to every socket, from the decode machine; returns the number of messages each must count.

    With the cluster's key: what comes without it is not read at all.
    """
    sent = engines.docker(
        DECODE, "run", "--rm", "--network=host", "--entrypoint=python",
        f"--volume={ROOT / 'docker/probes'}:/ours/probes:ro", f"--volume={HERE}:/noise:ro",
        "--env=PYTHONPATH=/ours", "--env=KVSHARE_CLUSTER_KEY_FILE=/key",
        f"--volume={ROOT / cluster_key.MADE}:/key:ro", "--user=root", engines.IMAGES[0],
        "/noise/noise.py", *(f"{one.role}:{one.host.address}:{one.port}" for one in sockets),
    )  # fmt: skip
    return dict(zip(sockets, map(int, sent.split()), strict=True))


def counted(stack: Stack) -> dict[Socket, float]:
    """Rejected messages by socket, as the metrics of its process tell."""
    return {one: stack.rejected(one.owner).get(one.name, 0.0) for one in stack.sockets}


def not_counted(stack: Stack, before: dict[Socket, float], sent: dict[Socket, int]) -> set[tuple[str, str]]:
    """The sockets that have not counted what was sent to them."""

    def lacking() -> set[tuple[str, str]]:
        after = counted(stack)
        return {(one.owner, one.name) for one in sent if after[one] < before[one] + sent[one]}

    return poll(lacking, lambda found: not found, COUNTED_S)


def test_bad_messages_stop_nothing_and_are_counted(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    injected, missing = 0, set()
    pool = traffic.know(6)
    with stack.survivors(*HOST_OF), traffic.running((PREFILL, DECODE), pool):
        for _ in range(ROUNDS_LONG if long else 1):
            before, sent = counted(stack), send_noise(stack.sockets)
            injected += sum(sent.values())
            missing |= not_counted(stack, before, sent)
    recovery = traffic.seconds_until_reuse(30)
    seen = record(figures.of(HERE, f"{len(stack.sockets)} ports", injected, traffic.sent, recovery))
    assert not missing, "these sockets did not count what they could not read"
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert stack.verify().code == 0
