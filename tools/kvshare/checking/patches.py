"""The patches that an image of each device must carry."""

_SHARED = (
    "message-defaults",
    "progress-delay",
    "lookup-loop",
    "pull-loop",
    "lookup-timeout",
    "double-free",
    "same-rank",
    "registration",
    "full-sync",
    "peer-loops",
    "dead-peer",
    "worker-address",
    "p2p-threshold",
    "lanes",
    "peer-introduction",
    "held-prefix",
    "export-interval",
)
PATCHES = {"cuda": ("packed-kv", *_SHARED), "cpu": ("cpu-connector", *_SHARED)}
