"""How often LMCache's counters are exported is a setting."""

from patch import Patch, Replacement

PATCH = Patch(
    id="export-interval",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.cache_engine",
    sha256_before="cc4b1830d9f90f1c1e49bf658646af369b56ecdf2387a68091f4c7f58fe84815",
    sha256_after="5a03660b4f84b31eb6e2b1efedbc04b56904afd4d27294fd956588d798351b51",
    replacements=(
        Replacement(
            old="                log_interval=10,\n",
            new="""\
                log_interval=config.get_extra_config_value(
                    "stats_log_interval", 10
                ),
""",
            reason="`stats_log_interval` in `extra_config`, in seconds.",
        ),
    ),
    title="LMCache's counters are exported every 2 s",
    reason=(
        "LMCache hands what it counted to Prometheus every 10 s, and the interval is fixed. A verification, "
        "which must see what was moved, waits for it twice; and pulls of up to 10 s before it would be "
        "counted as the control's, which must move nothing. With the patch the interval is a setting, and "
        "configs/lmcache.yaml sets 2 s."
    ),
    upstream="Not reported; `log_interval=10` in `LMCacheEngineBuilder.get_or_create`.",
    probe="A real node, told to export every second, stores a prompt: the counter must say so within 3 s.",
    drop_when="upstream makes the interval a setting.",
)
