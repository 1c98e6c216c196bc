"""Whatever a worker holds, its controller learns, without the worker standing still."""

from patch import Edit, Patch, Replacement

PATCH = Patch(
    id="full-sync",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.cache_controller.full_sync_sender",
    sha256_before="8a886ff45145a07b4f2eef7feb099cf38b3009c4fae93a947da388bdd8f84a64",
    sha256_after="7c87401e2dc486f831979a1a4f4734753e97d834ca9581a3ea3354c0e9c249b3",
    replacements=(
        Replacement(
            old="""\
        # Step 1: Random startup delay to avoid thundering herd
        delay = random.uniform(0, self.startup_delay_range_s)
        logger.info("Full sync startup delay: %.2fs", delay)
        await asyncio.sleep(delay)

        # Step 2: Enter freeze mode
        logger.info("Entering freeze mode for full sync.")
        self.lmcache_engine.freeze(True)

        # Step 3: Get all keys from hot cache
""",
            new="        # Step 1: Count the keys, for the number of batches\n",
            reason=(
                "No delay of up to 5 s, and no freeze: what was stored during one was neither kept nor ever "
                "admitted."
            ),
        ),
        Replacement(
            old="""\
        total_keys = len(keys)

        for batch_id in range(batch_count):
            start_idx = batch_id * self.batch_size
            end_idx = min(start_idx + self.batch_size, total_keys)
            batch_keys = keys[start_idx:end_idx]

            self._send_sync_batch(sync_id, batch_id, batch_keys)

            logger.debug(
                "Sent batch %d/%d with %d keys",
                batch_id + 1,
                batch_count,
                len(batch_keys),
            )

            # Small delay between batches to avoid overwhelming controller
            if self.batch_interval_ms > 0 and batch_id < batch_count - 1:
                await asyncio.sleep(self.batch_interval_ms / 1000.0)

        # Send end message
        self._send_sync_end(sync_id, total_keys)
""",
            new="""\
        # Under the lock of admissions and evictions, and in their queue: one that is
        # not in these keys follows them, one that follows them is the newer.
        with self.local_cpu_backend.cpu_lock:
            keys = [key.chunk_hash for key in self.local_cpu_backend.hot_cache]
            total_keys = len(keys)
            for batch_id in range(batch_count):
                self._send_sync_batch(sync_id, batch_id, keys[batch_id::batch_count])
            self._send_sync_end(sync_id, total_keys)
""",
            reason=(
                "The keys are taken and queued in one go, in order with what is stored and evicted meanwhile."
            ),
        ),
        Replacement(
            old='            "full_sync_status_poll_interval_s", 5.0\n',
            new='            "full_sync_status_poll_interval_s", 1.0\n',
            reason="Asked after 1 s whether all has arrived, not after 5.",
        ),
        Replacement(
            old="""\
            if status.can_exit_freeze:
                return True

            # Handle missing batches - resend them
            if status.missing_batches and resend_count < max_resend_attempts:
                resend_count += 1
                logger.warning(
                    "Controller reported missing batches, resending "
                    "(attempt %d/%d): %s",
                    resend_count,
                    max_resend_attempts,
                    status.missing_batches,
                )
                await self._resend_missing_batches(
                    sync_id, keys, status.missing_batches
                )
                # Resend end message after resending missing batches
                self._send_sync_end(sync_id, total_keys)
            elif status.missing_batches and resend_count >= max_resend_attempts:
                logger.error(
                    "Max resend attempts reached (%d), "
                    "giving up on missing batches: %s",
                    max_resend_attempts,
                    status.missing_batches,
                )
""",
            new="""\
            if status.is_complete:
                return True

            resend_count += 1
            if resend_count >= max_resend_attempts:
                logger.warning("Full sync given up, the controller will ask again")
                return False
""",
            reason=(
                "Done when this worker's keys have arrived, whatever the others do; given up after three "
                "answers that say otherwise, so that a controller restarted meanwhile can ask anew (it went "
                "on for 5 minutes, refusing that)."
            ),
        ),
        Replacement(
            old="""\
            await self._poll_for_completion(
                init_result.sync_id,
                init_result.keys,
                init_result.total_keys,
            )

""",
            new="""\
            if not await self._poll_for_completion(
                init_result.sync_id,
                init_result.keys,
                init_result.total_keys,
            ):
                return False

""",
            reason="Said to be complete only if it was.",
        ),
        Replacement(
            old="""\
            # Always clean up state, regardless of success or failure
            logger.info("Exiting freeze mode after full sync.")
            self.lmcache_engine.freeze(False)
""",
            new="            # Always clean up state\n",
            reason="No freeze to end.",
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.cache_controller.worker",
            sha256_before="e6cb437fc098e2f38af17293c7ff783f5d20730c16b443929ae78a3042cea798",
            sha256_after="dfab92ff72d2234429850a42e52333cc74d2567c12f6e98437e2a07d105bfc6f",
            replacements=(
                Replacement(
                    old="        if not ret_msg.has_commands():\n",
                    new=(
                        "        cache = self.lmcache_engine.storage_manager\n"
                        "        if cache is None or not ret_msg.has_commands():\n"
                    ),
                    reason=(
                        "A worker whose cache is still being made, which takes seconds where it is pinned, "
                        "waits for the next heartbeat's command instead of failing at this one's."
                    ),
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.cache_controller.controllers.full_sync_tracker",
            sha256_before="ad6b6cfd9ed845509ffab1e6036050a212c2a697f1b790e24055429407f23ded",
            sha256_after="87d3878bff1e68c748cb583133ed136d3f6d39531ae7675c001160488b243c9d",
            replacements=(
                Replacement(
                    old="""\
        # Case 1: Controller just restarted, all workers need sync
        if self._need_full_sync_all:
            sync_info = self._get_sync_info(instance_id, worker_id)
            if sync_info is None or sync_info.state not in (
                FullSyncState.SYNCING,
                FullSyncState.COMPLETED,
            ):
                return True, "controller_restart"

        # Case 2: Worker sync failed/timeout, needs retry
        sync_info = self._get_sync_info(instance_id, worker_id)
""",
                    new="""\
        # Case 1: Not synchronised since it registered, or a message was lost since
        sync_info = self._get_sync_info(instance_id, worker_id)
        if sync_info is None:
            return True, "not_synchronised"
        if (
            sync_info.state == FullSyncState.SYNCING
            and time.time() - sync_info.last_activity_time > SYNC_STALLED_AFTER_S
        ):
            return True, "sync_stalled"

        # Case 2: Worker sync failed/timeout, needs retry
""",
                    reason=(
                        "Every worker is asked after each registration, and again if it stalls; once most "
                        "workers were done, upstream asked no other any more."
                    ),
                ),
                Replacement(
                    old="logger = init_logger(__name__)\n",
                    new="logger = init_logger(__name__)\n\nSYNC_STALLED_AFTER_S = 10\n",
                    reason="When that is.",
                ),
                Replacement(
                    old="""\
                    existing_sync.sync_id,
                    sync_id,
                )
                return False
""",
                    new="""\
                    existing_sync.sync_id,
                    sync_id,
                )
""",
                    reason="A new session replaces one that a worker began before it was restarted.",
                ),
                Replacement(
                    old="""\
            if worker_node.sync_info is not None
            and worker_node.sync_info.state == FullSyncState.SYNCING
        )
""",
                    new="""\
            if worker_node.sync_info is None
            or worker_node.sync_info.state != FullSyncState.COMPLETED
        )
""",
                    reason="The metric of syncing workers counts those that have yet to begin.",
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.cache_controller.controllers.kv_controller",
            sha256_before="1008bfc6b09a01ac5e8ea96ee2bca7da57f2e2e8e3d86f522fee56a3e6c8270f",
            sha256_after="b32b5323683d583d4d7b4331923df52c0b2fb9e9566e42f3dabb9c7b0ce340b1",
            replacements=(
                Replacement(
                    old="""\
        # Check if worker is currently in full sync
        if self.full_sync_tracker.is_worker_syncing(msg.instance_id, msg.worker_id):
            # During full sync, incremental operations should be discarded
            logger.debug(
                "Discarding incremental KV operations during full sync: "
                "instance=%s, worker=%d, sync_id=%s, operation_count=%d",
                msg.instance_id,
                msg.worker_id,
                self.full_sync_tracker.get_sync_id(msg.instance_id, msg.worker_id),
                len(msg.operations),
            )
            return

        if not self.registry.handle_batched_kv_operations(msg):
""",
                    new="""\
        if not self.registry.handle_batched_kv_operations(msg):
""",
                    reason="What is stored or evicted during a synchronisation is taken, not thrown away.",
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.cache_controller.utils",
            sha256_before="ad045b5850e53e0992077b6c748560d8d68ebb7c9b8cc2f4b566b62b8d14bb79",
            sha256_after="22ff9e25dfdc4577bf6c741eadf4ad38495b90c1d2562a9bb79edf343eb6aff9",
            replacements=(
                Replacement(
                    old="""\
            # During syncing, reject non-full-sync operations
            if (
                self.sync_info is not None
                and self.sync_info.state == FullSyncState.SYNCING
                and not is_full_sync
            ):
                return False

            location = msg.location
""",
                    new="            location = msg.location\n",
                    reason="The same, where it is thrown away a second time.",
                ),
                Replacement(
                    old="""\
        # Log warning and call callback outside lock
        if seq_warning is not None:
""",
                    new="""\
        # Log warning and call callback outside lock
        if seq_warning is not None:
            self.sync_info = None  # a message was lost: ask for all keys again
""",
                    reason="After a gap in a worker's numbered messages it is asked for all its keys.",
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.internal_api_server.controller.worker_info_api",
            sha256_before="113a90a6808d54b6a8064c6001b5267fdeca4cc90cf44e20c10ae2e9bdc6590c",
            sha256_after="447c17de405847052befb0ea3f063dc7836086994f74cf0a887827c64a14bba1",
            replacements=(
                Replacement(
                    old="""\
    key_count: int


class WorkerListResponse(BaseModel):
""",
                    new="""\
    key_count: int
    synced: bool = False


def _is_synced(worker_node) -> bool:
    sync_info = worker_node and worker_node.sync_info
    return bool(sync_info and sync_info.state.value == "completed")


class WorkerListResponse(BaseModel):
""",
                    reason="`GET /controller/workers` says of each worker whether all its keys are known:",
                ),
                Replacement(
                    old="""\
                key_count=key_count,
            )

        # Case 2""",
                    new="""\
                key_count=key_count,
                synced=_is_synced(worker_node),
            )

        # Case 2""",
                    reason="of one,",
                ),
                Replacement(
                    old="""\
                        key_count=key_count,
                    )
                )

            return WorkerListResponse(workers=workers, total_count=len(workers))

        # Case 3""",
                    new="""\
                        key_count=key_count,
                        synced=_is_synced(worker_node),
                    )
                )

            return WorkerListResponse(workers=workers, total_count=len(workers))

        # Case 3""",
                    reason="of an instance's,",
                ),
                Replacement(
                    old="""\
                        key_count=key_count,
                    )
                )

            return WorkerListResponse(workers=workers, total_count=len(workers))
    except""",
                    new="""\
                        key_count=key_count,
                        synced=_is_synced(worker_node),
                    )
                )

            return WorkerListResponse(workers=workers, total_count=len(workers))
    except""",
                    reason="and of all.",
                ),
            ),
        ),
    ),
    title="What a worker holds, its controller knows, without the worker standing still",
    reason=(
        "A full synchronisation freezes the worker for 5 to 20 s: prompts computed meanwhile are not kept, "
        "and the controller throws away what the worker reports. It waits for the other workers, is not "
        "asked for again once most are done, and goes on for 5 minutes if the controller restarts in the "
        "middle. Keys are then missing at the controller for good."
    ),
    upstream="Present in LMCache 0.5.6; no issue known.",
    probe=(
        "A real node stores while its controller is away for some seconds, and goes on storing while it "
        "returns. Within 15 s the controller must know every key, call the worker synchronised, and go on "
        "admitting; after a lost message (a gap in the numbers) it must ask for all keys again."
    ),
    drop_when="upstream synchronises without freezing, and asks every worker until it is done.",
)
