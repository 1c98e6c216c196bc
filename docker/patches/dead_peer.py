"""A peer that is gone costs a request a bounded wait, holds no lock, and is found again when it returns."""

from patch import Edit, Patch, Replacement

PATCH = Patch(
    id="dead-peer",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.storage_backend.p2p_backend",
    sha256_before="7d232c53d6e4753861ced710ff318d24c0eaa2549b60e9774a3b0e7b0ec63a35",
    sha256_after="68d3df11f947123fe54f4c74655f8300376153c2b524a034384f17263b8a4231",
    replacements=(
        Replacement(
            old="logger = init_logger(__name__)\n",
            new="""\
logger = init_logger(__name__)

# Longer than a peer may take over a transfer that nobody waits for any more.
QUARANTINE_S = 60.0
""",
            reason="How long the memory of a failed pull is left alone.",
        ),
        Replacement(
            old='            "p2p_socket_recv_timeout_ms", DEFAULT_SOCKET_RECV_TIMEOUT_MS\n',
            new='            "p2p_socket_recv_timeout_ms", config.lookup_timeout_ms\n',
            reason=(
                "A peer's answer is waited for no longer than the request that wants it waits, 3 s, not 30 s."
            ),
        ),
        Replacement(
            old="        self.update_peer_lock = asyncio.Lock()\n",
            new=(
                "        self.update_peer_lock = asyncio.Lock()\n"
                "        # the attempts to connect that go on, and until when a request waits\n"
                "        self.connecting: dict[str, tuple[asyncio.Task, float]] = {}\n"
            ),
            reason="Attempts to connect, by peer.",
        ),
        Replacement(
            old="""\
        async with self.update_peer_lock:
            # double check
            if (
                not force_update
                and target_peer_init_url in self.target_peer_info_mapping
            ):
                return

            init_side_msg = P2PInitSideMsg()
            init_ret_msg = await self.transfer_channel.async_lazy_init_peer_connection(
                local_id=self.peer_init_url,
                peer_id=target_peer_init_url,
                peer_init_url=target_peer_init_url,
                init_side_msg=init_side_msg,
            )
            assert isinstance(init_ret_msg, P2PInitSideRetMsg)

            peer_lookup_url = init_ret_msg.peer_lookup_url
            peer_info = self.target_peer_info_mapping.get(target_peer_init_url, None)
            lookup_socket = get_zmq_socket_with_timeout(
                self.async_context,
                peer_lookup_url,
                "tcp",
                zmq.REQ,
                "connect",
                self.socket_recv_timeout_ms,
                self.socket_send_timeout_ms,
            )
            if peer_info is not None:
                peer_info.update_peer_lookup_url(peer_lookup_url)
                peer_info.update_lookup_socket(lookup_socket)
            else:
                self.target_peer_info_mapping[target_peer_init_url] = PeerInfo(
                    peer_init_url=target_peer_init_url,
                    peer_lookup_url=peer_lookup_url,
                    lookup_lock=asyncio.Lock(),
                    lookup_socket=lookup_socket,
                )
""",
            new="""\
        if target_peer_init_url not in self.connecting:
            attempt = asyncio.create_task(self._connect_to_peer(target_peer_init_url))
            waited_until = self.loop.time() + self.config.lookup_timeout_ms / 2000
            self.connecting[target_peer_init_url] = (attempt, waited_until)
            attempt.add_done_callback(
                lambda done: self._end_of_attempt(target_peer_init_url, done)
            )
        # The attempt goes on alone: a request waits only at its beginning.
        attempt, waited_until = self.connecting[target_peer_init_url]
        remaining = max(0.0, waited_until - self.loop.time())
        await asyncio.wait_for(asyncio.shield(attempt), remaining)

    def _end_of_attempt(self, target_peer_init_url: str, attempt: asyncio.Task) -> None:
        self.connecting.pop(target_peer_init_url, None)
        if not attempt.cancelled() and attempt.exception() is not None:
            logger.warning(
                "Peer %s cannot be connected to: %r",
                target_peer_init_url,
                attempt.exception(),
            )

    async def _connect_to_peer(self, target_peer_init_url: str) -> None:
        init_ret_msg = await self.transfer_channel.async_lazy_init_peer_connection(
            local_id=self.peer_init_url,
            peer_id=target_peer_init_url,
            peer_init_url=target_peer_init_url,
            init_side_msg=P2PInitSideMsg(),
        )
        assert isinstance(init_ret_msg, P2PInitSideRetMsg)

        peer_lookup_url = init_ret_msg.peer_lookup_url
        peer_info = self.target_peer_info_mapping.get(target_peer_init_url, None)
        lookup_socket = get_zmq_socket_with_timeout(
            self.async_context,
            peer_lookup_url,
            "tcp",
            zmq.REQ,
            "connect",
            self.socket_recv_timeout_ms,
            self.socket_send_timeout_ms,
        )
        if peer_info is not None:
            peer_info.update_peer_lookup_url(peer_lookup_url)
            peer_info.update_lookup_socket(lookup_socket)
        else:
            self.target_peer_info_mapping[target_peer_init_url] = PeerInfo(
                peer_init_url=target_peer_init_url,
                peer_lookup_url=peer_lookup_url,
                lookup_lock=asyncio.Lock(),
                lookup_socket=lookup_socket,
            )
""",
            reason=(
                "Connecting is a task of its own, one a peer, under no lock. A request waits for half of "
                "`lookup_timeout_ms` from the task's beginning, then it is a miss; the next ones are at once."
            ),
        ),
        Replacement(
            old="        target_peer_init_url, _ = self.lookup_id_to_peer_mapping.pop(lookup_id)\n",
            new="""\
        peer = self.lookup_id_to_peer_mapping.pop(lookup_id, None)
        if peer is None:
            return []
        target_peer_init_url, _ = peer
""",
            reason="A lookup without a peer gets nothing, rather than a KeyError that leaves it unanswered.",
        ),
        Replacement(
            old="""\
            mem_obj = self.local_cpu_backend.allocate(shapes, self.dtypes, self.fmt)
            mem_objs.append(mem_obj)
            str_keys.append(key.to_string())

""",
            new="""\
            mem_obj = self.local_cpu_backend.allocate(
                shapes, self.dtypes, self.fmt, busy_loop=False
            )
            if mem_obj is None:
                break
            mem_objs.append(mem_obj)
            str_keys.append(key.to_string())
        if not mem_objs:
            return []

""",
            reason="With memory full, what fits is pulled; waiting for more stopped the loop that frees it.",
        ),
        Replacement(
            old="""\
        retry_count = 0
        while retry_count < self.max_retry_count:
            peer_info = self.target_peer_info_mapping[target_peer_init_url]
            lookup_lock = peer_info.lookup_lock
            async with lookup_lock:
                lookup_socket = peer_info.lookup_socket
                try:
                    retry_count += 1
                    await lookup_socket.send(msgspec.msgpack.encode(msg))
                    ret_msg_bytes = await lookup_socket.recv()
                    ret_msg = msgspec.msgpack.decode(ret_msg_bytes, type=P2PMsg)
                    if (
                        isinstance(ret_msg, P2PErrorMsg)
                        and ret_msg.error_code
                        == P2PErrorCode.REMOTE_XFER_HANDLER_NOT_INITIALIZED
                    ):
                        logger.warning(
                            "Peer connection not initialized for lookup_id %s, "
                            "ensure peer connection first, retry count: %s",
                            lookup_id,
                            retry_count,
                        )
                        await self._ensure_peer_connection(target_peer_init_url, True)
                    else:
                        break
                except zmq.ZMQError as e:
                    logger.error(
                        "ZMQ error occurred for lookup_id %s. Error: %s",
                        lookup_id,
                        e,
                    )
                    await self._ensure_peer_connection(target_peer_init_url, True)
                    if retry_count == self.max_retry_count:
                        logger.error(
                            "Max retry count reached for lookup_id %s",
                            lookup_id,
                        )
                        self._cleanup_memory_objects(mem_objs)
                        return []
                except Exception as e:
                    logger.error(
                        "Error during P2P get operation for lookup_id %s: %s",
                        lookup_id,
                        e,
                        exc_info=True,
                    )
                    self._cleanup_memory_objects(mem_objs)
                    return []

        if isinstance(ret_msg, P2PErrorMsg):
            logger.error(
                "P2P error for lookup_id %s, error code: %s",
                lookup_id,
                ret_msg.error_code,
            )
            num_hit_chunks = 0
        else:
            num_hit_chunks = ret_msg.num_hit_chunks

""",
            new="""\
        ret_msg = await self._ask_peer(target_peer_init_url, msg)
        if (
            isinstance(ret_msg, P2PErrorMsg)
            and ret_msg.error_code == P2PErrorCode.REMOTE_XFER_HANDLER_NOT_INITIALIZED
        ):
            logger.info("Peer %s was restarted, connecting anew", target_peer_init_url)
            try:
                await self._ensure_peer_connection(target_peer_init_url, True)
                ret_msg = await self._ask_peer(target_peer_init_url, msg)
            except Exception as e:
                logger.warning("No connection to %s: %r", target_peer_init_url, e)
        if not isinstance(ret_msg, BatchedLookupAndGetRetMsg):
            logger.warning(
                "Nothing pulled from %s for lookup_id %s: %s",
                target_peer_init_url,
                lookup_id,
                ret_msg or "no answer",
            )
            # The peer may still be writing into it.
            self.loop.call_later(QUARANTINE_S, self._cleanup_memory_objects, mem_objs)
            return []
        num_hit_chunks = ret_msg.num_hit_chunks

""",
            reason=(
                "A peer is asked once, and again only if it was restarted. One that does not answer is "
                "forgotten, so that the next request connects anew. The memory of a failed pull is not given "
                "to anyone while the peer might still write into it: that would be wrong KV."
            ),
        ),
        Replacement(
            old="    def _get_unfull_chunk_shapes(self, num_tokens: int) -> list[torch.Size]:\n",
            new="""\
    async def _ask_peer(self, peer_init_url: str, msg: P2PMsgBase) -> Any:
        \"\"\"The peer's answer; None, and the peer is forgotten, if there is none.\"\"\"
        peer_info = self.target_peer_info_mapping.get(peer_init_url)
        if peer_info is None:
            return None
        async with peer_info.lookup_lock:
            try:
                await peer_info.lookup_socket.send(msgspec.msgpack.encode(msg))
                ret_msg_bytes = await peer_info.lookup_socket.recv()
                return msgspec.msgpack.decode(ret_msg_bytes, type=P2PMsg)
            except (Exception, asyncio.CancelledError) as e:
                logger.warning("Peer %s does not answer: %r", peer_init_url, e)
                if self.target_peer_info_mapping.get(peer_init_url) is peer_info:
                    del self.target_peer_info_mapping[peer_init_url]
                peer_info.lookup_socket.close(linger=0)
                return None

    def _get_unfull_chunk_shapes(self, num_tokens: int) -> list[torch.Size]:
""",
            reason="One question to one peer.",
        ),
        Replacement(
            old="""\
            mem_objs = await self.local_cpu_backend.batched_get_non_blocking(
                lookup_id=lookup_id,
                keys=keys[:num_hit_chunks],
            )
""",
            new="""\
            if num_hit_chunks == 0:
                return BatchedLookupAndGetRetMsg(num_hit_chunks=0)
            mem_objs = await self.local_cpu_backend.batched_get_non_blocking(
                lookup_id=lookup_id,
                keys=keys[:num_hit_chunks],
            )
""",
            reason="Chunks that the owner evicted meanwhile are a miss, not an error.",
        ),
        Replacement(
            old="""\
            await self.transfer_channel.async_batched_write(
                objects=mem_objs,
                transfer_spec=channel_transfer_spec,
            )
""",
            new="""\
            try:
                await asyncio.wait_for(
                    self.transfer_channel.async_batched_write(
                        objects=mem_objs,
                        transfer_spec=channel_transfer_spec,
                    ),
                    self.socket_recv_timeout_ms / 1000,
                )
            except Exception:
                self.transfer_channel.forget_peer(receiver_id)
                raise
""",
            reason=(
                "A transfer ends when nobody waits for it any more; after a failed one the receiver "
                "introduces itself again, which a broken connection needs."
            ),
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.transfer_channel.nixl_channel",
            sha256_before="db436e17e2ac7c75f0b7d9e3be4b0477945fdbbda9d671abbe2a705eca794d89",
            sha256_after="8d7a9676dd1cdca7f54942d9b1bb2a35412d55bfcc5a6e1659e3dde521e0c68e",
            replacements=(
                Replacement(
                    old="""\
            zmq.REQ,
            "connect",
        )
        # Build and send init request
""",
                    new="""\
            zmq.REQ,
            "connect",
        )
        init_tmp_socket.setsockopt(zmq.RCVTIMEO, INTRODUCTION_TIMEOUT_MS)
        try:
            return await self._async_introduce(
                init_tmp_socket, local_id, peer_id, init_side_msg
            )
        finally:
            init_tmp_socket.close(linger=0)

    async def _async_introduce(
        self,
        init_tmp_socket: Any,
        local_id: str,
        peer_id: str,
        init_side_msg: Optional[InitSideMsgBase],
    ) -> Optional[InitSideRetMsgBase]:
        # Build and send init request
""",
                    reason=(
                        "Each answer of a new peer is waited for 10 s, not for ever, and the socket closed."
                    ),
                ),
                Replacement(
                    old="logger = init_logger(__name__)\n",
                    new="logger = init_logger(__name__)\n\nINTRODUCTION_TIMEOUT_MS = 10_000\n",
                    reason="Those 10 s.",
                ),
                Replacement(
                    old="""\
        init_tmp_socket.close()
        return init_ret_msg

    def remote_xfer_handler_exists(""",
                    new="""\
        return init_ret_msg

    def forget_peer(self, peer_id: str) -> None:
        \"\"\"Drop what is known of a peer, which then has to introduce itself again.\"\"\"
        self.remote_xfer_handlers_dict.pop(peer_id, None)
        agent_name = self.remote_agent_names.pop(peer_id, None)
        if agent_name is not None:
            try:
                self.nixl_agent.remove_remote_agent(agent_name)
            except Exception as e:
                logger.warning("Peer %s cannot be removed: %r", peer_id, e)

    def remote_xfer_handler_exists(""",
                    reason="A peer can be forgotten.",
                ),
                Replacement(
                    old="            self.remote_xfer_handlers_dict[req.local_id] = remote_xfer_handlers\n",
                    new=(
                        "            self.remote_xfer_handlers_dict[req.local_id] = remote_xfer_handlers\n"
                        "            self.remote_agent_names[req.local_id] = req.remote_agent_name\n"
                    ),
                    reason="For that its agent's name is kept.",
                ),
                Replacement(
                    old="        self.side_channels: list[zmq.Socket] = []\n",
                    new=(
                        "        self.remote_agent_names: dict[str, bytes] = {}\n\n"
                        "        self.side_channels: list[zmq.Socket] = []\n"
                    ),
                    reason="Where it is kept.",
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.rpc_utils",
            sha256_before="6637c31a90103058b7d7bb50d86c0aefbcc5785368c8992c9463ba585e4b8b35",
            sha256_after="891f907f37d05f530c631bf42adb1e140774d454935babb6361471c16681fc8e",
            replacements=(
                Replacement(
                    old='    if bind_or_connect == "bind":\n        socket.bind(socket_addr)\n',
                    new="""\
    # A connection whose other end is gone is noticed, and made anew.
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10_000)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 3_000)
    if bind_or_connect == "bind":
        socket.bind(socket_addr)
""",
                    reason=(
                        "Every socket: after 10 s without a sign of life from the other end the connection "
                        "is dropped, and made anew every 3 s; TCP alone would wait for minutes after a "
                        "partition."
                    ),
                ),
            ),
        ),
    ),
    title="A peer that is gone costs a bounded wait",
    reason=(
        "Connecting to a peer that is gone waits for ever, under a lock that every other connection needs; a "
        "peer that stops answering is asked three times for 30 s each, under the lock that all loading "
        "needs, local memory included. A transfer to it is waited for without end, and no other peer is "
        "served. And the memory of a pull that was given up is given to others while the peer may still "
        "write into it."
    ),
    upstream="Present in LMCache 0.5.6; no issue known.",
    probe=(
        "Three real nodes. One that others pull from is stopped (SIGSTOP), then killed: a pull from it and "
        "from another node, and a local hit, must each be over within `lookup_timeout_ms`; restarted, at its "
        "old and at a new address, it must be pulled from again."
    ),
    drop_when="upstream bounds connecting, asking and transferring, and reconnects.",
)
