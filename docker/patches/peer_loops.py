"""A message that a worker or a peer cannot use ends none of its loops."""

from patch import Edit, Patch, Replacement
from pull_loop import REJECTED

PATCH = Patch(
    id="peer-loops",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.transfer_channel.nixl_channel",
    sha256_before="daa0eec26556294d2d53b90b428b071ae39c6968f3fb1bc12374d0499bd1312b",
    sha256_after="db436e17e2ac7c75f0b7d9e3be4b0477945fdbbda9d671abbe2a705eca794d89",
    added=(REJECTED,),
    replacements=(
        Replacement(
            old="from lmcache.v1.rpc_utils import get_zmq_context, get_zmq_socket\n",
            new=(
                "from lmcache.v1.rejected_messages import Rejected\n"
                "from lmcache.v1.rpc_utils import get_zmq_context, get_zmq_socket\n"
            ),
            reason="The counter.",
        ),
        Replacement(
            old="""\
        logger.info("Starting async initialization loop")

        while self.running:
            try:
                req_bytes = await self.init_side_channel.recv()

                logger.info("Received initialization request")

                req = msgspec.msgpack.decode(req_bytes, type=Union[NixlMsg, SideMsg])

                resp = self._handle_init_msg(req)

                await self.init_side_channel.send(msgspec.msgpack.encode(resp))

            except Exception as e:
                logger.error("Failed to process initialization loop: %s", str(e))
                if self.running:
                    time.sleep(0.01)
""",
            new="""\
        logger.info("Starting async initialization loop")
        rejected = Rejected("p2p_init")

        while self.running:
            try:
                try:
                    frames = await self.init_side_channel.recv_multipart()
                except zmq.Again as e:
                    rejected.add(e)  # no envelope: nothing to read, nobody to answer
                    continue
                req_bytes = b"".join(frames)

                logger.info("Received initialization request")
                # A REP socket that has not answered receives nothing more.
                answer = b""
                try:
                    req = msgspec.msgpack.decode(
                        req_bytes, type=Union[NixlMsg, SideMsg]
                    )
                    answer = msgspec.msgpack.encode(self._handle_init_msg(req))
                except Exception as e:
                    rejected.add(e)
                await self.init_side_channel.send(answer)

            except Exception as e:
                logger.error("Failed to process initialization loop: %s", str(e))
                if self.running:
                    await asyncio.sleep(0.1)
""",
            reason=(
                "P2P init: every request is answered, with nothing if it is no good, and all its frames are "
                "taken; no sleep stops the event loop that all transfers share."
            ),
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.storage_backend.p2p_backend",
            sha256_before="d5357e941cd1fbad07427f53e35be7c8354c717d47753066d0cce5d56a7a8829",
            sha256_after="7d232c53d6e4753861ced710ff318d24c0eaa2549b60e9774a3b0e7b0ec63a35",
            replacements=(
                Replacement(
                    old="from lmcache.v1.rpc_utils import (\n",
                    new=(
                        "from lmcache.v1.rejected_messages import Rejected\n"
                        "from lmcache.v1.rpc_utils import (\n"
                    ),
                    reason="The counter.",
                ),
                Replacement(
                    old="""\
        while self.running.is_set():
            msg_bytes = await self.async_peer_socket.recv()
            msg = msgspec.msgpack.decode(msg_bytes, type=P2PMsg)

            num_tokens = len(msg.mem_indexes) * self.chunk_size
""",
                    new="""\
        rejected = Rejected("p2p_lookup")
        while self.running.is_set():
            try:
                frames = await self.async_peer_socket.recv_multipart()
            except zmq.Again as e:
                rejected.add(e)  # no envelope: nothing to read, nobody to answer
                continue
            try:
                msg_bytes = b"".join(frames)
                msg = msgspec.msgpack.decode(msg_bytes, type=P2PMsg)
                num_tokens = len(msg.mem_indexes) * self.chunk_size
            except Exception as e:
                rejected.add(e)
                ret_msg = P2PErrorMsg(error_code=P2PErrorCode.UNKNOWN_MSG_TYPE)
                await self.async_peer_socket.send(msgspec.msgpack.encode(ret_msg))
                continue
""",
                    reason=(
                        "P2P lookup: a bad request is answered with an error; the socket, and the requests "
                        "of other peers in it, are kept."
                    ),
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.cache_controller.worker",
            sha256_before="dfab92ff72d2234429850a42e52333cc74d2567c12f6e98437e2a07d105bfc6f",
            sha256_after="d2ba78e6b580faa60f165c3a3cf4bf99dcc4af4b8f6ea5d8e480a4c94f020145",
            replacements=(
                Replacement(
                    old="from lmcache.v1.rpc_utils import (\n",
                    new=(
                        "from lmcache.v1.rejected_messages import Rejected\n"
                        "from lmcache.v1.rpc_utils import (\n"
                    ),
                    reason="The counter.",
                ),
                Replacement(
                    old="""\
        while True:
            try:
                serialized_request = await self.reply_socket.recv()
""",
                    new="""\
        rejected = Rejected("worker")
        while True:
            try:
                frames = await self.reply_socket.recv_multipart()
            except zmq.Again as e:
                rejected.add(e)  # no envelope: nothing to read, nobody to answer
                continue
            try:
                serialized_request = b"".join(frames)
""",
                    reason=(
                        "Worker: neither a message of several frames nor one without an envelope ends the "
                        "loop."
                    ),
                ),
                Replacement(
                    old="""\
                logger.error("Worker error: %s", e)
                serialized_ret_msg""",
                    new="""\
                rejected.add(e)
                serialized_ret_msg""",
                    reason="Worker: counted, and not logged each time.",
                ),
            ),
        ),
    ),
    title="A message that a worker or a peer cannot use ends none of its loops",
    reason=(
        "One bad message on the P2P init port leaves its REP socket without an answer: that loop then fails "
        "for ever, a hundred lines of log a second, stops the event loop that all transfers share each time, "
        "and no peer can connect any more. On the P2P lookup port it closes the socket on every peer, each "
        "of which then waits 30 s. On the worker's port a message of two frames ends the loop. All are "
        "counted in `lmcache:rejected_messages_total{socket}`."
    ),
    upstream="Present in LMCache 0.5.6; no issue known.",
    probe=(
        "A real node (LMCache's engine with its P2P backend over NIXL, and its worker) is sent undecodable, "
        "truncated, wrongly typed and two-frame messages and 10 MB of noise on its three ports, then asked "
        "on each for what it is there for."
    ),
    drop_when="upstream answers every request on these sockets and takes the next.",
)
