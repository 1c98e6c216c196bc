"""RegisterMsg and HeartbeatMsg decode when a worker sends no peer_init_url."""

from patch import Patch, Replacement

PATCH = Patch(
    id="message-defaults",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.cache_controller.message",
    sha256_before="61f599b84ef40492857af65daff3ccba8dcb70dec1ab0d9073d8403a57bd3170",
    sha256_after="09d294e75210dadb377a24cd78433fa08634bc2580ff2d70c2ddc2081b29a30a",
    replacements=(
        Replacement(
            old=(
                "    # URL for actual KV cache transfer, only useful when p2p is enabled\n"
                "    peer_init_url: Optional[str]\n"
            ),
            new=(
                "    # URL for actual KV cache transfer, only useful when p2p is enabled\n"
                "    peer_init_url: Optional[str] = None\n"
            ),
            reason="RegisterMsg: optional in type, yet required by the decoder; it is the last field.",
        ),
        Replacement(
            old=(
                "    peer_init_url: Optional[str]\n"
                "\n"
                "    def describe(self) -> str:\n"
                '        return f"Heartbeat from'
            ),
            new=(
                "    peer_init_url: Optional[str] = None\n"
                "\n"
                "    def describe(self) -> str:\n"
                '        return f"Heartbeat from'
            ),
            reason="HeartbeatMsg: the same field, no longer inherited since LMCache 0.3.13.",
        ),
    ),
    title="A worker without peer_init_url can register",
    reason=(
        "A worker of another LMCache version that sends no `peer_init_url` (it was called "
        "`distributed_url`) is refused with `Object missing required field`, on registration and on "
        "every heartbeat. The default acts in the decoder, so in the controller's image; the engines "
        "carry it too: all roles share one image."
    ),
    upstream="Unfixed in every release from 0.3.10 to 0.5.6; no issue known.",
    probe=(
        "A real `lmcache_controller` is started on free loopback ports; a stand-in for an old worker "
        "sends a RegisterMsg and a HeartbeatMsg without the field and must appear in `GET "
        "/controller/workers`."
    ),
    drop_when="upstream gives the field a default in both messages.",
)
