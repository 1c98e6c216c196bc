"""A rank is told only of peers of its own rank."""

from patch import Edit, Patch, Replacement

PATCH = Patch(
    id="same-rank",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.cache_controller.controllers.kv_controller",
    sha256_before="f71290ed976d1d6a9841a1c9fdad06dea53bbe192b41d0b6ea431c1705bb0150",
    sha256_after="1008bfc6b09a01ac5e8ea96ee2bca7da57f2e2e8e3d86f522fee56a3e6c8270f",
    replacements=(
        Replacement(
            old="""\
            hashes[0], exclude_instance_id=msg.instance_id
        )
""",
            new="""\
            hashes[0], exclude_instance_id=msg.instance_id, worker_id=msg.worker_id
        )
""",
            reason="The controller's lookup says which rank asks.",
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.cache_controller.utils",
            sha256_before="d5a8ffeb66b78ed07c0cc4adf2e91cc1142fe2f9c8c7cc45fb0f4c84dc427de6",
            sha256_after="69d1df9cd7921a6e806f822a021ff41ce0afbd8f466000b91884a7a5c0d51be0",
            replacements=(
                Replacement(
                    old="""\
        exclude_instance_id: Optional[str] = None,
    ) -> Optional[tuple[KVChunkInfo, Optional[str], set[int]]]:
""",
                    new="""\
        exclude_instance_id: Optional[str] = None,
        worker_id: Optional[int] = None,
    ) -> Optional[tuple[KVChunkInfo, Optional[str], set[int]]]:
""",
                    reason="The registry's search can be for one rank,",
                ),
                Replacement(
                    old="            result = instance_node.find_key(key)\n",
                    new="            result = instance_node.find_key(key, worker_id)\n",
                    reason="which it hands to each instance,",
                ),
                Replacement(
                    old="""\
    def find_key(
        self, key: int
    ) -> Optional[tuple[KVChunkInfo, Optional[str], set[int]]]:
        \"\"\"
        Find a key in any worker within this instance.
""",
                    new="""\
    def find_key(
        self, key: int, rank: Optional[int] = None
    ) -> Optional[tuple[KVChunkInfo, Optional[str], set[int]]]:
        \"\"\"
        Find a key in any worker within this instance, or in that of a rank.
""",
                    reason="where it is optional,",
                ),
                Replacement(
                    old="""\
        for worker_id, worker_node in workers_snapshot:
            if result := worker_node.find_key(key):
""",
                    new="""\
        for worker_id, worker_node in workers_snapshot:
            if rank is not None and worker_id != rank:
                continue
            if result := worker_node.find_key(key):
""",
                    reason="and keeps the others out.",
                ),
            ),
        ),
    ),
    title="With tensor parallelism a rank pulls from the same rank",
    reason=(
        "The controller answers a lookup with the first worker that holds the chunk, whichever rank asks. "
        "With tensor parallelism all but one rank are then sent to a peer that has not got their share of "
        "the heads: the peer finds nothing under their keys, and the prompt is recomputed after a wasted "
        "round trip."
    ),
    upstream="[#2405](https://github.com/LMCache/LMCache/issues/2405), open; wrong since LMCache 0.3.11.",
    probe=(
        "Two ranks of one instance register with a real controller and admit the same chunks; each rank of "
        "another instance must be answered with the address of its own rank, and a rank that nobody else has "
        "with a miss."
    ),
    drop_when="upstream's controller compares the worker id.",
)
