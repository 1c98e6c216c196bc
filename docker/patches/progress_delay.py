"""NIXL's progress thread sleeps until UCX has news, instead of spinning on a core of its own."""

from patch import Patch, Replacement

PATCH = Patch(
    id="progress-delay",
    devices=frozenset({"cpu", "cuda"}),
    distribution="nixl-cu13",
    version="1.5.1",
    module="nixl_cu13._api",
    sha256_before="79ac70eed826672f09a21df7e71c8646654e761961c9783ecd8e145c0a7149a7",
    sha256_after="7038cf154947e7c511ad7c41c7eeea51e145f95a62dbf3e2054bd72edcffebb9",
    replacements=(
        Replacement(
            old="        agent_config.pthrDelay = 0\n",
            new="        agent_config.pthrDelay = 10000\n",
            reason="Microseconds that the thread's poll may wait; events of UCX end the wait at once.",
        ),
    ),
    title="An idle server does not burn a core",
    reason=(
        "NIXL's Python API fixes its progress thread's delay to 0, so that thread polls without a pause: "
        "94 % of a core a server, for as long as the server lives. Where cores are few it takes them from "
        "the engine. The thread polls UCX's own event descriptors, so a delay costs a transfer nothing."
    ),
    upstream="Fixed at 0 in NIXL 1.5.1; no issue known.",
    probe="An agent with its UCX backend is created and left alone: its CPU time must be near none.",
    drop_when="NIXL's Python API takes the delay as an argument, or its default is no longer 0.",
)
