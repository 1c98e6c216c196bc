"""A worker registers whenever its controller can be reached, with the address that it has now."""

from patch import Edit, Patch, Replacement

PATCH = Patch(
    id="registration",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.cache_controller.worker",
    sha256_before="bcaab1dab25fb731e27b4b6363f874139ba972b9c9c3eae3b3bacf36ebecff6a",
    sha256_after="e6cb437fc098e2f38af17293c7ff783f5d20730c16b443929ae78a3042cea798",
    replacements=(
        Replacement(
            old="        # Heartbeat socket will be created dynamically after register\n",
            new=(
                "        self.controller_answers = False\n\n"
                "        # Heartbeat socket will be created dynamically after register\n"
            ),
            reason="The worker knows whether its controller answers.",
        ),
        Replacement(
            old="""\
    async def register(self):
        \"\"\"
        Register the lmcache worker with the controller via DEALER-ROUTER.
""",
            new="""\
    async def register(self):
        \"\"\"
        Register the lmcache worker, for as long as it takes.
        \"\"\"
        while not self.controller_answers:
            try:
                await self._register_once()
            except Exception:
                self._recreate_req_socket()
            if not self.controller_answers:
                await asyncio.sleep(1)

    async def _register_once(self):
        \"\"\"
        Register the lmcache worker with the controller via DEALER-ROUTER.
""",
            reason="An unanswered or refused registration is tried again, on a new socket.",
        ),
        Replacement(
            old="                self._process_register_response(ret_msg)\n",
            new=(
                "                self._process_register_response(ret_msg)\n"
                "                self.controller_answers = True\n"
            ),
            reason="From its answer on, the controller is there;",
        ),
        Replacement(
            old='            logger.error("Heartbeat timeout occurred, recreating socket. Error: %s", e)\n',
            new="""\
            self.controller_answers = False
            logger.error("Heartbeat timeout occurred, recreating socket. Error: %s", e)
""",
            reason="and a heartbeat without an answer that it is away.",
        ),
        Replacement(
            old="""\
            # DEALER socket: send [empty_frame, payload]
            logger.info("Sending heartbeat message to controller...")
            await self.heartbeat_socket.send_multipart(
                [b"", msgspec.msgpack.encode(msg)]
            )
            logger.info("Heartbeat message sent, waiting for response...")
            frames = await self.heartbeat_socket.recv_multipart()
            logger.info("Received heartbeat response with %d frames", len(frames))
""",
            new="""\
            # DEALER socket: send [empty_frame, payload]
            await self.heartbeat_socket.send_multipart(
                [b"", msgspec.msgpack.encode(msg)]
            )
            frames = await self.heartbeat_socket.recv_multipart()
            self.controller_answers = True
""",
            reason="A heartbeat's answer says so too, without three lines of log each time,",
        ),
        Replacement(
            old="""\
        # Send other messages via DEALER socket
        try:
            # DEALER socket: send""",
            new="""\
        # Nobody waits for a controller that is known to be away.
        if not self.controller_answers:
            return self._on_request_failure(msg)

        # Send other messages via DEALER socket
        try:
            # DEALER socket: send""",
            reason="Lookups are misses at once while the controller is away, not after a timeout.",
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.rpc_utils",
            sha256_before="15f9aedda575b6cfcfa1fa54faddb81a289732183d5c2f25b7e846e8b96f7342",
            sha256_after="6637c31a90103058b7d7bb50d86c0aefbcc5785368c8992c9463ba585e4b8b35",
            replacements=(
                Replacement(
                    old="DEFAULT_SOCKET_RECV_TIMEOUT_MS = 30000\n",
                    new="DEFAULT_SOCKET_RECV_TIMEOUT_MS = 3000\n",
                    reason="An answer is waited for 3 s, as long as a lookup by default, not 30 s.",
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.cache_controller.controllers.registration_controller",
            sha256_before="28704ac304dfb739578b55592f79668abc6ab87e32684a0ca8e96a2183436402",
            sha256_after="44d21a6b8ccb7a1e11d6fe1224117293795265725a3cb97f0630e3d8ac965b41",
            replacements=(
                Replacement(
                    old="""\
            logger.warning(
                "Instance-worker %s already registered, skip registration",
                (instance_id, worker_id),
            )
            self.registry.clear_worker_kv(instance_id, worker_id)
            return (
                RegisterRetMsg()
                if extra_config is None
                else RegisterRetMsg(extra_config=extra_config)
            )
""",
                    new="""\
            logger.info(
                "Instance-worker %s registers again, its old entry is dropped",
                (instance_id, worker_id),
            )
            await self.deregister(
                DeRegisterMsg(
                    instance_id=instance_id, worker_id=worker_id, ip=ip, port=port
                )
            )
""",
                    reason=(
                        "A worker that registers again gets a new entry: its address, its socket, no keys."
                    ),
                ),
                Replacement(
                    old="""\
        success = self.registry.update_heartbeat(instance_id, worker_id, time.time())
""",
                    new="""\
        success = self.registry.update_heartbeat(
            instance_id, worker_id, time.time()
        ) and self._knows_address_of(msg)
""",
                    reason=(
                        "A heartbeat from another address than the registered one registers the worker anew."
                    ),
                ),
                Replacement(
                    old="    async def heartbeat(self, msg: HeartbeatMsg) -> HeartbeatRetMsg:\n",
                    new="""\
    def _knows_address_of(self, msg: HeartbeatMsg) -> bool:
        node = self.registry.get_worker(msg.instance_id, msg.worker_id)
        return node is not None and (node.ip, node.port, node.peer_init_url) == (
            msg.ip,
            msg.port,
            msg.peer_init_url,
        )

    async def heartbeat(self, msg: HeartbeatMsg) -> HeartbeatRetMsg:
""",
                    reason="The comparison.",
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.cache_controller.utils",
            sha256_before="69d1df9cd7921a6e806f822a021ff41ce0afbd8f466000b91884a7a5c0d51be0",
            sha256_after="ad045b5850e53e0992077b6c748560d8d68ebb7c9b8cc2f4b566b62b8d14bb79",
            replacements=(
                Replacement(
                    old="TTLListCache[WorkerInfo] = TTLListCache[WorkerInfo]()\n",
                    new="TTLListCache[WorkerInfo] = TTLListCache[WorkerInfo](1.0)\n",
                    reason="The list of workers is at most 1 s old, not 30 s.",
                ),
                Replacement(
                    old="            tuple[str, WorkerNode]\n        ]()\n",
                    new="            tuple[str, WorkerNode]\n        ](1.0)\n",
                    reason="Likewise the list behind the metrics.",
                ),
            ),
        ),
    ),
    title="A worker registers whenever its controller can be reached",
    reason=(
        "A worker asks once, waits 30 s, and then shares nothing for the rest of its life, heartbeats "
        "included: a controller that starts later is never found. One that registers again from a new "
        "address keeps the OLD one in the controller, so peers are sent to where nobody is. And while the "
        "controller is away every lookup waits out its timeout."
    ),
    upstream="Present in LMCache 0.5.6; no issue known.",
    probe=(
        "A real node is started without a controller; looking a prompt up must be a quick miss. The "
        "controller is started 6 s later and must list the node within 15 s. A stand-in for a worker "
        "registers from one address, then from another, then beats from a third: each time the controller "
        "must list the last."
    ),
    drop_when="upstream retries the registration and takes the new address of a known worker.",
)
