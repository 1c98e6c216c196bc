"""What vLLM holds itself is not pulled from a peer again."""

from patch import Edit, Patch, Replacement

PATCH = Patch(
    id="held-prefix",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.storage_backend.storage_manager",
    sha256_before="8c1d0cb9be92983574f8e3abb597a614570ab3231d2b73404038f2db244c44de",
    sha256_after="58434337140c7b06d45ad1c08b2b91241112fefa972413413861296a6806a869",
    replacements=(
        Replacement(
            old="""\
        pin: bool = False,
        keys_per_chunk: int = 1,
    ) -> None:
        \"\"\"
        Perform asynchronous lookup and prefetching across all storage backends.
""",
            new="""\
        pin: bool = False,
        keys_per_chunk: int = 1,
        num_computed_tokens: int = 0,
    ) -> None:
        \"\"\"
        Perform asynchronous lookup and prefetching across all storage backends.
""",
            reason="The tokens that vLLM holds itself, from the prompt's beginning.",
        ),
        Replacement(
            old="        loading_task_keys: list[list[CacheEngineKey]] = []\n",
            new="""\
        loading_task_keys: list[list[CacheEngineKey]] = []
        if num_computed_tokens > 0:
            # First Party
            from lmcache.v1.storage_backend.p2p_backend import HELD_BY_VLLM

            num_held = sum(end <= num_computed_tokens for end in cum_chunk_lengths[1:])
            HELD_BY_VLLM.set(frozenset(keys[: num_held * keys_per_chunk]))
""",
            reason="Their keys, for the P2P backend's decision in the same task.",
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.cache_engine",
            sha256_before="58a784ef5b61df91e4b8c3838fc39cbf443e3eb6b3e34304c0ae9742d77234f5",
            sha256_after="cc4b1830d9f90f1c1e49bf658646af369b56ecdf2387a68091f4c7f58fe84815",
            replacements=(
                Replacement(
                    old="""\
        pin: bool = False,
        request_configs: Optional[dict] = None,
    ) -> None:
        \"\"\"
        An async version of lookup + prefetch.
""",
                    new="""\
        pin: bool = False,
        request_configs: Optional[dict] = None,
        num_computed_tokens: int = 0,
    ) -> None:
        \"\"\"
        An async version of lookup + prefetch.
""",
                    reason="Handed on.",
                ),
                Replacement(
                    old="""\
                pin,
                keys_per_chunk=keys_per_chunk,
            ),
            self.storage_manager.loop,
""",
                    new="""\
                pin,
                keys_per_chunk=keys_per_chunk,
                num_computed_tokens=num_computed_tokens,
            ),
            self.storage_manager.loop,
""",
                    reason="Handed on.",
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.lookup_client.async_lookup_message",
            sha256_before="2cdea7b7f8e01f76599019159bd9e8b4eff9a14e9a1a2b8204b3195542d41bd9",
            sha256_after="e436c0539fb8be1ae3e3620f94a7079efdc7b042c2bae547932bd14dd675ad99",
            replacements=(
                Replacement(
                    old="    request_configs: Optional[Dict[str, str]] = None\n",
                    new="""\
    request_configs: Optional[Dict[str, str]] = None
    num_computed_tokens: int = 0
""",
                    reason="From the scheduler to its worker.",
                ),
            ),
        ),
        Edit(
            module="lmcache.v1.lookup_client.lmcache_async_lookup_client",
            sha256_before="3f8c7a47b3304ebb130f04f1213353bc5f3dccb5add2603baf93e21e31e15858",
            sha256_after="3a86efa81842aa376d9cdb41511d9122de236ddad98728b27e6f8bad723eff12",
            replacements=(
                Replacement(
                    old="        self.first_lookup_time: dict[str, float] = {}\n",
                    new="""\
        self.first_lookup_time: dict[str, float] = {}
        # of the request that is looked up next
        self.num_computed_tokens = 0
""",
                    reason=(
                        "Set before lookup(), whose arguments are those of every lookup client and of what "
                        "may be wrapped around it."
                    ),
                ),
                Replacement(
                    old="            request_configs=request_configs,\n        )\n\n        # Serialize",
                    new="""\
            request_configs=request_configs,
            num_computed_tokens=self.num_computed_tokens,
        )

        # Serialize""",
                    reason="From the scheduler to its worker.",
                ),
                Replacement(
                    old="                        request_configs=msg.request_configs,\n",
                    new="""\
                        request_configs=msg.request_configs,
                        num_computed_tokens=msg.num_computed_tokens,
""",
                    reason="Handed on.",
                ),
            ),
        ),
        Edit(
            module="lmcache.integration.vllm.vllm_v1_adapter",
            sha256_before="93b98f11c856f9509a94091475ab3faf78ba0483ed5127ba764a953b5bd1fde8",
            sha256_after="e967d779991f3f8bc062ecaad030713910e8ff654c280765834cdb0ccef3b7dc",
            replacements=(
                Replacement(
                    old="""\
            num_external_hit_tokens = self.lookup_client.lookup(
                token_ids,
                lookup_id=req_id,
""",
                    new="""\
            self.lookup_client.num_computed_tokens = num_computed_tokens
            num_external_hit_tokens = self.lookup_client.lookup(
                token_ids,
                lookup_id=req_id,
""",
                    reason="What vLLM's own prefix cache holds of the request.",
                ),
            ),
        ),
    ),
    title="What vLLM holds itself is not pulled",
    reason=(
        "A lookup ignores vLLM's own prefix cache, and LMCache does not keep what it pulled: "
        "every time the same prompt, or the next turn of a conversation, comes to the node that "
        "pulled it, all of it is pulled again, waited for, and not loaded. With the patch the tokens that "
        "vLLM holds count neither for a pull nor for `p2p_min_tokens`; a pull of which they are the larger "
        "part is not made, and counted in `lmcache:declined_pulls_total`. LMCache then stores the prompt "
        "from vLLM's memory."
    ),
    upstream=(
        "[#3490](https://github.com/LMCache/LMCache/issues/3490) and "
        "[#2971](https://github.com/LMCache/LMCache/issues/2971); "
        "[#3540](https://github.com/LMCache/LMCache/pull/3540), open, skips such chunks in every tier."
    ),
    probe=(
        "Two real nodes; one holds three chunks of a prompt. The other, told that vLLM holds none or one of "
        "them, must pull; told two or all three, it must pull nothing and ask nobody. What its own LMCache "
        "holds must be found whatever vLLM holds."
    ),
    drop_when="upstream's asynchronous lookup leaves out what vLLM holds.",
)
