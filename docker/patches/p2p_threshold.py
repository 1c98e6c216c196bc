"""A pull that would bring fewer tokens than pay for it is declined before a byte is asked for."""

from patch import Edit, Patch, Replacement

PATCH = Patch(
    id="p2p-threshold",
    devices=frozenset({"cpu", "cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.storage_backend.p2p_backend",
    sha256_before="68d3df11f947123fe54f4c74655f8300376153c2b524a034384f17263b8a4231",
    sha256_after="9355873f449cc9f212ce253ebd385b15d4a565df7ce8926abcd090dc18178d69",
    replacements=(
        Replacement(
            old="import msgspec\nimport torch\nimport zmq\n",
            new="import msgspec\nimport prometheus_client\nimport torch\nimport zmq\n",
            reason="For the counter.",
        ),
        Replacement(
            old="# Longer than a peer may take",
            new="""\
DECLINED = prometheus_client.Counter(
    "lmcache:declined_pulls",
    "Lookups that made no pull, because it would bring too few tokens",
)

# The keys that vLLM holds itself, of the lookup that the current task makes.
HELD_BY_VLLM: ContextVar[frozenset] = ContextVar("held_by_vllm", default=frozenset())

# Longer than a peer may take""",
            reason="`lmcache:declined_pulls_total`; and what the patch `held-prefix` tells it.",
        ),
        Replacement(
            old="""\
        # Convert to hashes (int form)
        hashes = [key.chunk_hash for key in keys]

        # Tier 1 lookup""",
            new="""\
        if self._declines(keys):
            return 0

        # Convert to hashes (int form)
        hashes = [key.chunk_hash for key in keys]

        # Tier 1 lookup""",
            reason="What is left of a prompt is too short: not even the controller is asked.",
        ),
        Replacement(
            old="""\
        if num_hit_chunks > 0:
            try:
                await self._ensure_peer_connection(target_peer_init_url)
""",
            new="""\
        if num_hit_chunks > 0 and self._declines(keys[:num_hit_chunks]):
            return 0

        if num_hit_chunks > 0:
            try:
                await self._ensure_peer_connection(target_peer_init_url)
""",
            reason="What the peer holds of it is too short: the peer is not asked, nor connected to.",
        ),
        Replacement(
            old="    async def _handle_peer_requests(self):\n",
            new="""\
    def _declines(self, keys: List[CacheEngineKey]) -> bool:
        \"\"\"Whether to pull these chunks costs more than it saves; vLLM may hold the first itself.\"\"\"
        num_held = sum(key in HELD_BY_VLLM.get() for key in keys)
        num_lacking = len(keys) - num_held
        num_tokens = num_lacking * self.chunk_size
        declined = num_tokens < self.config.p2p_min_tokens or num_lacking < num_held
        if declined:
            DECLINED.inc()
            logger.info(
                "No pull of %d chunks: it would bring %d tokens", len(keys), num_tokens
            )
        return declined

    async def _handle_peer_requests(self):
""",
            reason=(
                "The comparison, counted. What vLLM lacks is worth a pull, unless that is less than half."
            ),
        ),
        Replacement(
            old="from dataclasses import dataclass\n",
            new="from contextvars import ContextVar\nfrom dataclasses import dataclass\n",
            reason="For what vLLM holds.",
        ),
    ),
    more=(
        Edit(
            module="lmcache.v1.config",
            sha256_before="257c5792070fa2840467e276c4a7da92261ced757b6dc91747dedb1a2bd3ad72",
            sha256_after="7216d2dfdf29d71a25816c2fc0d21346a34c873f75305ac55e367eb2f10c4d8f",
            replacements=(
                Replacement(
                    old='    "min_retrieve_tokens": {\n',
                    new="""\
    "p2p_min_tokens": {
        "type": int,
        "default": 0,
        "env_converter": lambda value: (
            sys.maxsize if value == "never" else int(value)
        ),
    },
    "min_retrieve_tokens": {
""",
                    reason="The setting `p2p_min_tokens`: a number of tokens, or `never`.",
                ),
                Replacement(
                    old="import json\nimport os\n",
                    new="import json\nimport os\nimport sys\n",
                    reason="For the number that `never` means.",
                ),
            ),
        ),
    ),
    title="A pull that does not pay is not made",
    reason=(
        "A peer's KV is pulled whenever a peer has it, however short: on a slow link, or beside a fast GPU, "
        "that takes longer than computing it. Upstream's `min_retrieve_tokens` acts when the bytes have "
        "travelled already. With the patch a pull that would bring fewer than `p2p_min_tokens` tokens is not "
        "made (`.env`: `P2P_MIN_TOKENS`), and counted in `lmcache:declined_pulls_total`."
    ),
    upstream="Not in LMCache 0.5.6; no issue known.",
    probe=(
        "Two real nodes, of which one pulls from three chunks on. Three chunks must be pulled. Two must not, "
        "and the controller not be asked for them; of a prompt of four, of which the peer holds two, "
        "nothing must be pulled either. A third node that pulls `never` must pull nothing."
    ),
    drop_when="upstream compares a pull's length with a setting before it asks the peer.",
)
