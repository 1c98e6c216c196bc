"""Probe of lookup-loop: every lookup that another loop sends through a worker gets its answer."""

from __future__ import annotations

import asyncio
import threading
import time
from multiprocessing.connection import Connection
from types import SimpleNamespace

from probes import ProbeError
from probes.controller import Ports, free_ports, running_controller
from probes.forks import Fork

LOOKUPS = 200
LOST_AFTER_S = 3.0  # an answer takes a millisecond; a lost one waits until something else wakes the loop
REGISTRATION_S = 3.0
TIMEOUT_S = 120.0


def probe() -> None:
    """Look up unknown keys through a real worker and controller; raises ProbeError if an answer is lost."""
    ports = free_ports()
    with running_controller(ports):
        worker = Fork(_look_up, ports)
        try:
            if not worker.answer(TIMEOUT_S):
                raise ProbeError("A lookup was answered, but the loop that waits for it did not wake up.")
        finally:
            worker.kill()


def _look_up(connection: Connection, ports: Ports) -> None:
    """Say whether every lookup is answered."""
    from lmcache.v1.cache_controller.message import BatchedP2PLookupMsg
    from lmcache.v1.cache_controller.worker import LMCacheWorker
    from lmcache.v1.config import LMCacheEngineConfig

    config = LMCacheEngineConfig.from_dict(
        {
            "enable_controller": True,
            "lmcache_instance_id": "kvshare-probe",
            "controller_pull_url": f"127.0.0.1:{ports.pull}",
            "controller_reply_url": f"127.0.0.1:{ports.reply}",
            "lmcache_worker_ports": [free_ports().http],
        }
    )
    worker = LMCacheWorker(config, SimpleNamespace(worker_id=0, world_size=1, use_mla=False), None)
    time.sleep(REGISTRATION_S)
    while not getattr(worker, "controller_answers", True):
        time.sleep(0.1)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    message = BatchedP2PLookupMsg(hashes=[1, 2, 3], instance_id="kvshare-probe", worker_id=0)
    for _ in range(LOOKUPS):
        answer = asyncio.run_coroutine_threadsafe(worker.async_put_and_wait_msg(message), loop)
        try:
            answer.result(LOST_AFTER_S)
        except TimeoutError:
            connection.send(False)
        time.sleep(0.01)
    connection.send(True)
