"""KV travels on several connections, each with a thread of its own at both ends."""

from patch import AddedFile, Patch, Replacement

PATCH = Patch(
    id="lanes",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.transfer_channel.nixl_channel",
    sha256_before="8d7a9676dd1cdca7f54942d9b1bb2a35412d55bfcc5a6e1659e3dde521e0c68e",
    sha256_after="1ecb7b92cc997a5acbf7457da6d141f61a9dfb1648a9b945ed0a49edb97e5f60",
    replacements=(
        Replacement(
            old="""\
            from nixl._api import nixl_agent as NixlAgent
            from nixl._api import nixl_agent_config
""",
            new="""\
            from lmcache.v1.transfer_channel.nixl_lanes import Lanes
""",
            reason="In place of one agent,",
        ),
        Replacement(
            old="""\
        nixl_agent = NixlAgent(
            str(uuid.uuid4()),
            nixl_agent_config(backends=backends),
        )
""",
            new="""\
        nixl_agent = Lanes(backends)
""",
            reason="as many as `KVSHARE_LANES` says.",
        ),
        Replacement(
            old="import time\nimport uuid\n",
            new="import time\n",
            reason="No longer used.",
        ),
    ),
    added=(AddedFile("nixl_lanes.py", "lmcache.v1.transfer_channel.nixl_lanes"),),
    title="KV travels on several connections at once",
    reason=(
        "All of a transfer goes through one TCP connection, which one thread fills and one empties: 3 GB/s "
        "on the machine of docs/gpu.md, whatever the network could carry. UCX opens no second connection on "
        "one network card for such writes, and NIXL's `num_threads` adds threads that send to one that still "
        "receives alone. So the channel gets several NIXL agents; each writes its share of the objects. How "
        "many is agreed on with each peer: the lower number of the two."
    ),
    upstream="LMCache 0.5.6 creates one agent and passes NIXL no parameters; no issue known.",
    probe=(
        "Of two real nodes, one with 4 lanes and one with 3, each pulls from the other; the values must be "
        "right and 3 connections or more be there."
    ),
    drop_when="upstream's channel can use several connections and receiving threads.",
)
