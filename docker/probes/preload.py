"""What the processes of probes need, imported once: see ``forks``."""

from importlib import import_module

from probes import leave_out_slow_imports

leave_out_slow_imports()
for _name in (
    "lmcache.v1.api_server.__main__",
    "lmcache.v1.cache_controller.worker",
    "lmcache.v1.cache_engine",
    "lmcache.v1.lookup_client.lmcache_async_lookup_client",
    "lmcache.v1.storage_backend.p2p_backend",
    "nixl._api",
):
    import_module(_name)
