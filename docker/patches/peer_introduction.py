"""Peers connect to each other once they are registered, not when the first pull waits for it."""

from patch import Edit, Patch, Replacement

PATCH = Patch(
    id="peer-introduction",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.storage_backend.p2p_backend",
    sha256_before="9355873f449cc9f212ce253ebd385b15d4a565df7ce8926abcd090dc18178d69",
    sha256_after="0be1f35c886ddd09b32162d0bce20e3e97f2fee61cc253a0ee4b5ab77eb73eef",
    replacements=(
        Replacement(
            old="QUARANTINE_S = 60.0\n",
            new="""\
QUARANTINE_S = 60.0

# How often it is looked whether a peer is still unknown.
INTRODUCTION_INTERVAL_S = 1.0
""",
            reason="The interval.",
        ),
        Replacement(
            old="""\
            self._run_peer_request_handler_with_recovery(), loop
        )
""",
            new="""\
            self._run_peer_request_handler_with_recovery(), loop
        )
        asyncio.run_coroutine_threadsafe(self._introduce_to_peers(), loop)
""",
            reason="Beside answering peers,",
        ),
        Replacement(
            old="""\
        if target_peer_init_url not in self.connecting:
            attempt = asyncio.create_task(self._connect_to_peer(target_peer_init_url))
            waited_until = self.loop.time() + self.config.lookup_timeout_ms / 2000
            self.connecting[target_peer_init_url] = (attempt, waited_until)
            attempt.add_done_callback(
                lambda done: self._end_of_attempt(target_peer_init_url, done)
            )
""",
            new="""\
        if target_peer_init_url not in self.connecting:
            self._begin_attempt(target_peer_init_url)
""",
            reason="a node begins to connect",
        ),
        Replacement(
            old="    def _end_of_attempt(",
            new="""\
    async def _introduce_to_peers(self) -> None:
        \"\"\"Connect to every peer that the controller names, again if one was forgotten.\"\"\"
        while self.running.is_set():
            for peer in self.lmcache_worker.peers:
                if peer not in self.target_peer_info_mapping | self.connecting:
                    self._begin_attempt(peer)
            await asyncio.sleep(INTRODUCTION_INTERVAL_S)

    def _begin_attempt(self, target_peer_init_url: str) -> None:
        attempt = asyncio.create_task(self._connect_to_peer(target_peer_init_url))
        waited_until = self.loop.time() + self.config.lookup_timeout_ms / 2000
        self.connecting[target_peer_init_url] = (attempt, waited_until)
        attempt.add_done_callback(
            lambda done: self._end_of_attempt(target_peer_init_url, done)
        )

    def _end_of_attempt(""",
            reason="to those that it does not know yet, or does not know any more, without waiting for any.",
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.cache_controller.message",
            sha256_before="09d294e75210dadb377a24cd78433fa08634bc2580ff2d70c2ddc2081b29a30a",
            sha256_after="52c27a35533ae6196e09ff599eeec9b9d520fad81034cf57b176e07078af56e2",
            replacements=(
                Replacement(
                    old="    extra_config: dict[str, str] = msgspec.field(default_factory=dict)\n",
                    new="""\
    extra_config: dict[str, str] = msgspec.field(default_factory=dict)
    # peer_init_url of every other worker of this rank
    peers: list[str] = []
""",
                    reason="The answer to a registration names the peers,",
                ),
                Replacement(
                    old="    commands: List[AnyCommand] = []\n",
                    new="    commands: List[AnyCommand] = []\n    peers: list[str] = []\n",
                    reason="and so does the answer to each heartbeat.",
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.cache_controller.controllers.registration_controller",
            sha256_before="44d21a6b8ccb7a1e11d6fe1224117293795265725a3cb97f0630e3d8ac965b41",
            sha256_after="7573198660ff68dc3ba8eb771c284d620185badd848fe3f39a3db1f2c5b8fe9c",
            replacements=(
                Replacement(
                    old="""\
        return (
            RegisterRetMsg()
            if extra_config is None
            else RegisterRetMsg(extra_config=extra_config)
        )
""",
                    new="""\
        return RegisterRetMsg(
            extra_config=extra_config or {},
            peers=self._peers_of(instance_id, worker_id),
        )
""",
                    reason="The controller's answers.",
                ),
                Replacement(
                    old="        return HeartbeatRetMsg(commands=commands)\n",
                    new="""\
        return HeartbeatRetMsg(
            commands=commands, peers=self._peers_of(instance_id, worker_id)
        )
""",
                    reason="Likewise.",
                ),
                Replacement(
                    old="    async def deregister(self, msg: DeRegisterMsg) -> None:\n",
                    new="""\
    def _peers_of(self, instance_id: str, worker_id: int) -> list[str]:
        return [
            worker.peer_init_url
            for worker in self.registry.get_all_worker_infos_cached()
            if worker.peer_init_url
            and worker.worker_id == worker_id
            and worker.instance_id != instance_id
        ]

    async def deregister(self, msg: DeRegisterMsg) -> None:
""",
                    reason="Every other worker of that rank; those without heartbeats are removed elsewhere.",
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.cache_controller.worker",
            sha256_before="063af2b927a4c677f1a11bf4018533dc8ef9b34b7809b2a233b12f54e4ecd7bf",
            sha256_after="d92b3eea8f26af5baa1bf79af1aad02fd7482cfc3f9de952cea80983fb4f2350",
            replacements=(
                Replacement(
                    old="        self.controller_answers = False\n\n        # Heartbeat socket",
                    new="""\
        self.controller_answers = False
        self.peers: list[str] = []

        # Heartbeat socket""",
                    reason="The worker knows its peers,",
                ),
                Replacement(
                    old="        extra_config = ret_msg.extra_config\n",
                    new="        extra_config = ret_msg.extra_config\n        self.peers = ret_msg.peers\n",
                    reason="from its registration on,",
                ),
                Replacement(
                    old="                        self._handle_heartbeat_commands(ret_msg)\n",
                    new="""\
                        self.peers = ret_msg.peers
                        self._handle_heartbeat_commands(ret_msg)
""",
                    reason="and those that come later.",
                ),
            ),
        ),
    ),
    title="Peers connect before the first pull",
    reason=(
        "A node connects to a peer when a prompt is to be pulled from it for the first time: memory "
        "descriptors travel, a socket is opened, and the request waits, several times as long as any later "
        "pull. With the patch the controller names a worker's peers when it registers and with each "
        "heartbeat, and the node connects to them in the background: to those that were there, to those that "
        "come later, and anew to one that it had to forget."
    ),
    upstream="Present in LMCache 0.5.6; no issue known.",
    probe=(
        "Three real nodes, one of which starts later. Without any request each must be connected to both "
        "others within some heartbeats, and the first pull must connect to nobody. One that was killed and "
        "comes back at another address must be connected to likewise."
    ),
    drop_when="upstream connects to peers when they register.",
)
