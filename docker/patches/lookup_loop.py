"""A lookup's answer wakes the loop that waits for it, instead of being lost until the lookup timeout."""

from patch import Patch, Replacement

PATCH = Patch(
    id="lookup-loop",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.cache_controller.worker",
    sha256_before="aebce65f03947f08175172f14c0cfc4efb806b57b5985299b1919625e24f201d",
    sha256_after="bcaab1dab25fb731e27b4b6363f874139ba972b9c9c3eae3b3bacf36ebecff6a",
    replacements=(
        Replacement(
            old=(
                "        # Send heartbeat via dedicated heartbeat socket\n"
                "        if isinstance(msg, HeartbeatMsg):\n"
            ),
            new=(
                "        if asyncio.get_running_loop() is not self.loop:\n"
                "            # req_socket belongs to self.loop: from another, an answer may wake nobody.\n"
                "            request = self.async_put_and_wait_msg(msg)\n"
                "            return await asyncio.wrap_future(\n"
                "                asyncio.run_coroutine_threadsafe(request, self.loop)\n"
                "            )\n"
                "        # Send heartbeat via dedicated heartbeat socket\n"
                "        if isinstance(msg, HeartbeatMsg):\n"
            ),
            reason="Requests to the controller are sent and awaited on the loop that owns the socket.",
        ),
    ),
    title="No lookup waits out its timeout because an answer was lost",
    reason=(
        "The worker registers through `req_socket` on its own event loop; the P2P backend then awaits "
        "lookups on the same socket from the storage manager's loop. pyzmq leaves the first loop watching "
        "it, and when that one takes an answer it resolves the other loop's future without waking it. The "
        "lookup then stalls until the next one arrives, or for the whole `lookup_timeout_ms`: 3 s instead of "
        "milliseconds, for a few requests in a hundred, cold prompts included."
    ),
    upstream="Present in LMCache 0.5.6; no issue known.",
    probe=(
        "A real worker, registered with a real controller, sends lookups from another loop; each must be "
        "answered. Without the patch one of the first hundred or so is lost."
    ),
    drop_when="upstream sends the P2P backend's lookups on the worker's own loop.",
)
