"""A message that the controller cannot use ends none of its loops."""

from patch import AddedFile, Edit, Patch, Replacement

REJECTED = AddedFile("rejected_messages.py", "lmcache.v1.rejected_messages")

PATCH = Patch(
    id="pull-loop",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.cache_controller.controller_manager",
    sha256_before="e499d11101ee475296dcc62b32ca2edca2fc2deb2faeb1c37f21159b03389f12",
    sha256_after="900c7d922c29542b112772c717aab3fe2ddd19bc87e51463a589db148d6ec355",
    added=(REJECTED,),
    replacements=(
        Replacement(
            old="from lmcache.v1.rpc_utils import (\n",
            new="from lmcache.v1.rejected_messages import Rejected\nfrom lmcache.v1.rpc_utils import (\n",
            reason="The counter.",
        ),
        Replacement(
            old="""\
    async def handle_batched_push_request(self, socket) -> Optional[MsgBase]:
        while True:
            parts = await socket.recv_multipart()
            part_count = len(parts)
            with SocketMetricsContext(self, SocketType.PULL, part_count):
                for part in parts:
                    # Parse message based on format
                    if part.startswith(b"{"):
                        # JSON format - typically from external systems
                        # like Mooncake
                        msg_dict = json.loads(part)
                        msg = msgspec.convert(msg_dict, type=Msg)
                    else:
                        # MessagePack format - internal LMCache communication
                        msg = msgspec.msgpack.decode(part, type=Msg)
                    if isinstance(msg, WorkerMsg):
                        await self.handle_worker_message(msg)

                    # FIXME(Jiayi): The abstraction of control messages
                    # might not be necessary.
                    # elif isinstance(msg, ControlMsg):
                    #    await self.issue_control_message(msg)
                    elif isinstance(msg, OrchMsg):
                        await self.handle_orchestration_message(msg)
                    else:
                        logger.error("Unknown message type: %s", type(msg))
""",
            new="""\
    async def handle_batched_push_request(self, socket) -> Optional[MsgBase]:
        rejected = Rejected("pull")
        while True:
            parts = await socket.recv_multipart()
            part_count = len(parts)
            with SocketMetricsContext(self, SocketType.PULL, part_count):
                for part in parts:
                    try:
                        await self._handle_pushed(part)
                    except Exception as e:
                        rejected.add(e)

    async def _handle_pushed(self, part: bytes) -> None:
        # Parse message based on format
        if part.startswith(b"{"):
            # JSON format - typically from external systems
            # like Mooncake
            msg_dict = json.loads(part)
            msg = msgspec.convert(msg_dict, type=Msg)
        else:
            # MessagePack format - internal LMCache communication
            msg = msgspec.msgpack.decode(part, type=Msg)
        # An OrchMsg waits for workers, which may be dead: HTTP is the way for those.
        if not isinstance(msg, WorkerMsg):
            raise TypeError(f"{type(msg).__name__} is not for this socket")
        await self.handle_worker_message(msg)
""",
            reason=(
                "Pull: whatever one message raises is counted, and the next is taken. Orchestration "
                "messages, which wait for workers without limit, are refused here; they come by HTTP."
            ),
        ),
        Replacement(
            old="""\
        while True:
            frames = await socket.recv_multipart()
            with SocketMetricsContext(self, SocketType.REPLY):
                identity = None
                try:
                    # ROUTER socket: [identity, empty_frame, payload]
                    if len(frames) < 3:
                        logger.error(
                            "Invalid ROUTER message format, expected >= 3 frames, "
                            "got %d",
                            len(frames),
                        )
                        continue
""",
            new="""\
        rejected = Rejected("reply")
        while True:
            frames = await socket.recv_multipart()
            with SocketMetricsContext(self, SocketType.REPLY):
                identity = None
                try:
                    # ROUTER socket: [identity, empty_frame, payload]
                    if len(frames) < 3:
                        raise ValueError(f"{len(frames)} frames instead of 3")
""",
            reason="Reply: a message without the three frames of a request is counted.",
        ),
        Replacement(
            old="""\
                    else:
                        logger.error("Unknown message type: %s", type(msg))
                        err_msg = ErrorMsg(error=f"Unknown message type: {type(msg)}")
                        await socket.send_multipart(
                            [identity, b"", msgspec.msgpack.encode(err_msg)]
                        )
                except (
                    json.JSONDecodeError,
                    msgspec.DecodeError,
                    msgspec.ValidationError,
                    zmq.ZMQError,
                ) as e:
                    logger.error("Error handling request message: %s", e, exc_info=True)
""",
            new="""\
                    else:
                        raise TypeError(f"{type(msg).__name__} is not for this socket")
                except Exception as e:
                    rejected.add(e)
""",
            reason="Reply: any error is counted and answered, not only four kinds of it.",
        ),
        Replacement(
            old="""\
        logger.info("Heartbeat handler task started, waiting for heartbeat requests...")
        while True:
""",
            new="""\
        logger.info("Heartbeat handler task started, waiting for heartbeat requests...")
        rejected = Rejected("heartbeat")
        while True:
""",
            reason="Heartbeat: its counter.",
        ),
        Replacement(
            old="""\
                    if len(frames) < 3:
                        logger.error(
                            "Invalid heartbeat ROUTER message format, "
                            "expected >= 3 frames, got %d",
                            len(frames),
                        )
                        continue
""",
            new="""\
                    if len(frames) < 3:
                        raise ValueError(f"a heartbeat of {len(frames)} frames")
""",
            reason="Heartbeat: likewise.",
        ),
        Replacement(
            old="""\
                    else:
                        logger.error(
                            "Unexpected message type on heartbeat socket: %s",
                            type(msg),
                        )
                        err_msg = ErrorMsg(
                            error=f"Expected HeartbeatMsg, got {type(msg)}"
                        )
                        await socket.send_multipart(
                            [identity, b"", msgspec.msgpack.encode(err_msg)]
                        )
                except (
                    json.JSONDecodeError,
                    msgspec.DecodeError,
                    msgspec.ValidationError,
                    zmq.ZMQError,
                ) as e:
                    logger.error(
                        "Error handling heartbeat request: %s", e, exc_info=True
                    )
""",
            new="""\
                    else:
                        raise TypeError(f"{type(msg).__name__} is no heartbeat")
                except Exception as e:
                    rejected.add(e)
""",
            reason="Heartbeat: likewise.",
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.rpc_utils",
            sha256_before="5fce322cd8a760aa1140bd74284dcb3ff0589a7c5b774f1895841c23d8d19ddb",
            sha256_after="15f9aedda575b6cfcfa1fa54faddb81a289732183d5c2f25b7e846e8b96f7342",
            replacements=(
                Replacement(
                    old="    socket = context.socket(role)\n",
                    new=(
                        "    socket = context.socket(role)\n"
                        "    # A frame's header may claim any size; libzmq would allocate it.\n"
                        "    socket.setsockopt(zmq.MAXMSGSIZE, 64 * 1024 * 1024)\n"
                    ),
                    reason=(
                        "Every socket: a peer that announces more than 64 MiB is disconnected; the largest "
                        "message in use, a table of memory pages, is some MB."
                    ),
                ),
            ),
        ),
    ),
    title="A message that the controller cannot use ends none of its loops",
    reason=(
        "One undecodable message on the pull socket ends that loop for good: no key is admitted any more "
        "while HTTP still answers 200. The reply and the heartbeat loop survive four kinds of error and end "
        "with any other, for example JSON that is not UTF-8. With the patch such a message is counted in "
        "`lmcache:rejected_messages_total{socket}` and logged at most once a minute a socket."
    ),
    upstream="Present from LMCache 0.3.10 to 0.5.6; no issue known.",
    probe=(
        "Undecodable, truncated, deeply nested and wrongly typed messages, JSON that is not UTF-8, too few "
        "frames and 10 MB of noise go to all three sockets of a real controller; then a worker registers, "
        "its key is admitted, its heartbeat is answered, and the metric has counted each socket's."
    ),
    drop_when="upstream's three loops survive any exception of a message.",
)
