"""What a request was given from the cache is given back once, all of it."""

from patch import Edit, Patch, Replacement

PATCH = Patch(
    id="double-free",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.cache_engine",
    sha256_before="968ba5906a6b77153f7ac3507bde686255b9ebc2de4c42f39ec507fd73f57572",
    sha256_after="58a784ef5b61df91e4b8c3838fc39cbf443e3eb6b3e34304c0ae9742d77234f5",
    replacements=(
        Replacement(
            old="""\
        future = self.event_manager.get_event_future(
            EventType.LOADING, kwargs["req_id"]
        )
""",
            new="""\
        # Taken, so that lookup_unpin() does not release the same objects again.
        future = self.event_manager.pop_event(EventType.LOADING, kwargs["req_id"])
""",
            reason="A retrieval takes the looked-up objects, which it releases itself at its end.",
        ),
        Replacement(
            old="""\
        for key, mem_obj in memory_obj_map.items():
            if key not in used_keys:
                mem_obj.ref_count_down()
""",
            new="""\
        for key, mem_obj in memory_obj_map.items():
            if key not in used_keys:
                if mem_obj.is_pinned:
                    mem_obj.unpin()
                mem_obj.ref_count_down()
""",
            reason=(
                "Objects that vLLM turned out to hold itself are unpinned too; they kept their memory for "
                "the 300 s of `pin_timeout_sec`."
            ),
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.storage_backend.local_cpu_backend",
            sha256_before="a8f709cae8f0f23d1226d0dfa5db357b998f235af072b3ba608cd39f09f67b88",
            sha256_after="098f03ff7718a4fad8933d6fd4ef58d7e3e431cdc8e0cf838cfc58d49596acb8",
            replacements=(
                Replacement(
                    old="""\
        # NOTE(Jiayi): Only prefix chunks are counted.
        num_hit_chunks = 0
        with self.cpu_lock:
            for key in keys:
                if key not in self.hot_cache:
                    return num_hit_chunks
                if pin:
                    self.hot_cache[key].pin()
                    # vllm lookup sets pin to True
                    self.keys_in_request.append(key)
                num_hit_chunks += 1
        return num_hit_chunks
""",
                    new="""\
        # NOTE(Jiayi): Only prefix chunks are counted.
        num_hit_chunks = 0
        with self.cpu_lock:
            for key in keys:
                if key not in self.hot_cache:
                    break
                if pin:
                    self.hot_cache[key].pin()
                num_hit_chunks += 1
            for key in reversed(keys[:num_hit_chunks] if pin else []):
                self.cache_policy.update_on_hit(key, self.hot_cache)
        return num_hit_chunks
""",
                    reason=(
                        "A looked-up key counts as used at once. It was put into a list that asynchronous "
                        "loading never empties: a leak, and eviction that never learned what is in use."
                    ),
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.storage_backend.storage_manager",
            sha256_before="4a39e327fc6646d3cf4d0bf847e138f594b09da90d379c5391f349dc5ec596b9",
            sha256_after="8c1d0cb9be92983574f8e3abb597a614570ab3231d2b73404038f2db244c44de",
            replacements=(
                Replacement(
                    old="""\
                    for _, mem_obj in subsequent_tier:
                        mem_obj.ref_count_down()
                break
""",
                    new="""\
                    for _, mem_obj in subsequent_tier:
                        if mem_obj.is_pinned:
                            mem_obj.unpin()
                        mem_obj.ref_count_down()
                    subsequent_tier.clear()
                break
""",
                    reason="What is released for want of the chunks before it is not released again later.",
                ),
            ),
        ),
    ),
    title="No page of memory is given to two owners",
    reason=(
        "With asynchronous loading every hit releases its objects twice: when it is retrieved, and again "
        "when the request's save is waited for. A pulled page is then free twice, so two later chunks get "
        "the same memory (`Double free occurred somewhere`); a page of the node's own cache is free while it "
        "is still stored, without a word in the log, and the next store overwrites it. Both end in wrong KV."
    ),
    upstream=(
        "[#5090](https://github.com/LMCache/LMCache/issues/5090) and "
        "[#3381](https://github.com/LMCache/LMCache/issues/3381) report the warnings; the code dates from "
        "[#2559](https://github.com/LMCache/LMCache/pull/2559)."
    ),
    probe=(
        "Two real nodes; one pulls a prompt from the other 200 times and retrieves its own as often, with "
        "more stored in between than memory holds. Every value must be right, no page free twice, or free "
        "and stored, or lost, and no `Double free` in the log."
    ),
    drop_when="upstream releases what an asynchronous lookup loaded exactly once.",
)
