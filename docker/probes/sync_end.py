"""Probe of sync-end: a synchronisation is over once the controller has this worker's keys, or never will."""

from __future__ import annotations

import asyncio
import threading
from multiprocessing.connection import Connection
from types import SimpleNamespace

from probes import ProbeError
from probes.forks import Fork

WITHIN_S = 10.0


def probe() -> None:
    """Raises ProbeError unless the sender is done in time, and says whether its keys have arrived."""
    for arrived in (True, False):
        sender = Fork(_send, arrived)
        try:
            found = sender.answer(WITHIN_S * 3)
        finally:
            sender.kill()
        if found is not arrived:
            raise ProbeError(
                f"A sender whose keys have {'' if arrived else 'not '}arrived should say so "
                f"within {WITHIN_S:.0f} s, but says {found}."
            )


def _send(connection: Connection, arrived: bool) -> None:
    """Say whether a synchronisation was complete; None if it goes on and on."""
    from lmcache.v1.cache_controller.full_sync_sender import FullSyncSender
    from lmcache.v1.cache_controller.message import FullSyncStartRetMsg, FullSyncStatusRetMsg

    async def answer(message: object) -> object:
        sync_id = message.sync_id  # type: ignore[attr-defined]
        if "Start" in type(message).__name__:
            return FullSyncStartRetMsg(sync_id=sync_id, accepted=True)
        # Other workers are still far from done.
        return FullSyncStatusRetMsg(
            sync_id=sync_id, is_complete=arrived, global_progress=0.1, can_exit_freeze=False
        )

    settings = SimpleNamespace(
        lmcache_instance_id="probe",
        get_extra_config_value=lambda name, default: 0.0 if name.endswith("startup_delay_s") else default,
    )
    worker = SimpleNamespace(worker_id=0, async_put_and_wait_msg=answer, put_msg=lambda _: None)
    cache = SimpleNamespace(hot_cache={}, cpu_lock=threading.Lock(), get_keys=list)
    sender = FullSyncSender(settings, worker, SimpleNamespace(freeze=lambda _: None), cache)

    async def within_limit() -> bool | None:
        try:
            return await asyncio.wait_for(sender.start_full_sync("probe"), WITHIN_S)
        except TimeoutError:
            return None

    connection.send(asyncio.run(within_limit()))
