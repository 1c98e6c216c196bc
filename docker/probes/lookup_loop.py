"""Probe of lookup-loop: every lookup that another loop sends through a worker gets its answer.

As a program (pull port, reply port) it is that worker. It ends by os._exit: LMCache's threads do not end.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from probes import ProbeError, leave_out_slow_imports
from probes.controller import free_ports, running_controller

LOOKUPS = 200
LOST_AFTER_S = 1.0  # an answer takes a millisecond; a lost one waits until something else wakes the loop
REGISTRATION_S = 3.0
TIMEOUT_S = 120.0
ALL_ANSWERED, ONE_LOST = 0, 7


def probe() -> None:
    """Look up unknown keys through a real worker and controller; raises ProbeError if an answer is lost."""
    ports = free_ports()
    with running_controller(ports):
        code = subprocess.run(
            [sys.executable, "-m", "probes.lookup_loop", str(ports.pull), str(ports.reply)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        ).returncode
    if code == ONE_LOST:
        raise ProbeError("A lookup was answered at once, but the loop that waits for it did not wake up.")
    if code != ALL_ANSWERED:
        raise ProbeError(f"The worker should end with exit code 0, but ended with {code}.")


def _look_up(pull: int, reply: int) -> int:
    leave_out_slow_imports()
    from lmcache.v1.cache_controller.message import BatchedP2PLookupMsg
    from lmcache.v1.cache_controller.worker import LMCacheWorker
    from lmcache.v1.config import LMCacheEngineConfig

    config = LMCacheEngineConfig.from_dict(
        {
            "enable_controller": True,
            "lmcache_instance_id": "kvshare-probe",
            "controller_pull_url": f"127.0.0.1:{pull}",
            "controller_reply_url": f"127.0.0.1:{reply}",
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
            return ONE_LOST
        time.sleep(0.01)
    return ALL_ANSWERED


if __name__ == "__main__":
    os._exit(_look_up(int(sys.argv[1]), int(sys.argv[2])))
