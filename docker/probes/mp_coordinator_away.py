"""Probe of mp-coordinator-away: peers are known on while nobody lists them, and dropped when they leave."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from probes import ProbeError

ME, PEER = "me", "peer"
POLLS = 10


def probe() -> None:
    """Raises ProbeError unless a peer is kept while the coordinator is away, and dropped when it has left."""
    from lmcache.v1.multiprocess.config import CoordinatorConfig, P2PConfig
    from lmcache.v1.multiprocess.modules.p2p_controller import P2PController

    manager = SimpleNamespace(add_l2_adapter=lambda _: 1, delete_l2_adapter=lambda *_: None)
    controller = P2PController(SimpleNamespace(storage_manager=manager), P2PConfig(), CoordinatorConfig(), ME)

    def poll(listed: Callable[[], list[Any]], times: int = POLLS) -> list[str]:
        controller._fetch_instances = listed
        for _ in range(times):
            controller._poll_cycle()
        peers: list[str] = controller.report_status()["p2p_peers"]
        return peers

    def silent() -> list[Any]:
        raise ValueError("away")

    if poll(lambda: [_instance(ME), _instance(PEER)], 1) != [PEER]:
        raise ProbeError("A peer that is listed should be known.")
    for what, listed in (("does not answer", silent), ("lists nobody", list)):
        if poll(listed) != [PEER]:
            raise ProbeError(f"A peer should be known on while the coordinator {what}, and is forgotten.")
    if poll(lambda: [_instance(ME)]):
        raise ProbeError("A peer that is no longer listed should be forgotten, and is known on.")


def _instance(name: str) -> Any:
    from lmcache.v1.multiprocess.modules.p2p_controller import _PeerInstance

    url = "" if name == ME else "127.0.0.1:8200"  # the probe's own is not enabled, so it has none
    return _PeerInstance(instance_id=name, ip="127.0.0.1", p2p_advertised_url=url, mq_port=8500)
