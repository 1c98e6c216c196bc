"""A worker listens on its node's own address, and registers that one."""

from patch import Patch, Replacement

PATCH = Patch(
    id="worker-address",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.cache_controller.worker",
    sha256_before="d2ba78e6b580faa60f165c3a3cf4bf99dcc4af4b8f6ea5d8e480a4c94f020145",
    sha256_after="063af2b927a4c677f1a11bf4018533dc8ef9b34b7809b2a233b12f54e4ecd7bf",
    replacements=(
        Replacement(
            old="""\
        self.lmcache_worker_internal_url = f"*:{lmcache_worker_port}"
        self.lmcache_worker_ip = get_ip()
""",
            new="""\
        host = config.p2p_host
        self.lmcache_worker_internal_url = f"{host or '*'}:{lmcache_worker_port}"
        self.lmcache_worker_ip = host or get_ip()
""",
            reason=(
                "Bound to `p2p_host`, as the P2P ports are, and registered with it; without one as upstream: "
                "bound to every address, registered with the default route's."
            ),
        ),
    ),
    title="A worker listens on its node's own address alone",
    reason=(
        "A worker's port is bound to every address of its machine, and nothing on it asks who calls: on a "
        "machine with a second network, anyone there can have the node's cache moved or cleared. And it "
        "registers with the address of the default route, which need not be the one that the controller "
        "reaches."
    ),
    upstream="Present in LMCache 0.5.6; no issue known.",
    probe=(
        "A real node at 127.0.0.2 registers with a real controller: it must be listed with that address, and "
        "each of its ports must answer there and refuse 127.0.0.1."
    ),
    drop_when="upstream lets the address of a worker be given.",
)
