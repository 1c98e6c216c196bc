"""A lookup that timed out stays timed out, and every lookup is answered."""

from patch import Edit, Patch, Replacement

PATCH = Patch(
    id="lookup-timeout",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.lookup_client.lmcache_async_lookup_client",
    sha256_before="570c495d6955b071f77837b127c887c40e05e9206f5a8f9c6f2c668598235645",
    sha256_after="3f8c7a47b3304ebb130f04f1213353bc5f3dccb5add2603baf93e21e31e15858",
    replacements=(
        Replacement(
            old="""\
            elif req_status is None:
                time.sleep(self.lookup_backoff_time)
                if (
                    time.time() - self.first_lookup_time[lookup_id]
                ) * 1000 > self.config.lookup_timeout_ms:
""",
            new="""\
            elif req_status is None:
                first_lookup_time = self.first_lookup_time.get(lookup_id)
                if first_lookup_time is None:
                    return 0  # timed out before, and not scheduled since
                time.sleep(self.lookup_backoff_time)
                if (
                    time.time() - first_lookup_time
                ) * 1000 > self.config.lookup_timeout_ms:
""",
            reason="A lookup that has timed out is a miss whenever it is asked for again.",
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.storage_backend.storage_manager",
            sha256_before="52d933c7c588f29f7915ae83b76ff90d023acd2872ba146f89eb3d50bd8a4d7b",
            sha256_after="4a39e327fc6646d3cf4d0bf847e138f594b09da90d379c5391f349dc5ec596b9",
            replacements=(
                Replacement(
                    old="""\
        for backend_name, backend in self.get_active_storage_backends(
            search_range=search_range
        ):
            num_hit_keys_raw = await backend.batched_async_contains(
                lookup_id, keys, pin
            )
""",
                    new="""\
        for backend_name, backend in self.get_active_storage_backends(
            search_range=search_range
        ):
            try:
                num_hit_keys_raw = await backend.batched_async_contains(
                    lookup_id, keys, pin
                )
            except (Exception, asyncio.CancelledError) as e:
                logger.warning("%s cannot be looked up in: %r", backend_name, e)
                continue
""",
                    reason="A backend that fails is a miss; the lookup goes on and is answered at once.",
                ),
                Replacement(
                    old="""\
            loading_results = await asyncio.gather(*loading_tasks)
            return [
                list(zip(keys, results, strict=False))
""",
                    new="""\
            loading_results = await asyncio.gather(
                *loading_tasks, return_exceptions=True
            )
            return [
                []
                if isinstance(results, BaseException)
                else list(zip(keys, results, strict=False))
""",
                    reason="Likewise one that fails to load.",
                ),
            ),
        ),
    ),
    title="A lookup that timed out does not end the engine",
    reason=(
        "After `lookup_timeout_ms` the request is recomputed; if it is not scheduled in the same step, vLLM "
        "asks for the same id again, and the client ends the engine with a `KeyError`. And a lookup that "
        "fails on the worker, for example because the controller went away, is answered never instead of at "
        "once."
    ),
    upstream=(
        "[#3685](https://github.com/LMCache/LMCache/issues/3685), fix proposed in "
        "[#3766](https://github.com/LMCache/LMCache/pull/3766), open."
    ),
    probe=(
        "The real client, with nobody to answer it, asks for an id until it times out and then again. And a "
        "real node whose controller answers a lookup with an error that its P2P backend raises is answered "
        "in well under `lookup_timeout_ms`."
    ),
    drop_when="a lookup after its timeout returns 0 upstream, and lookups that fail are answered.",
)
