"""What a benchmark is asked to do; it crosses from the operator to the client container as JSON."""

import math
from dataclasses import dataclass, field

from kvshare.config.threshold import PULL_ALWAYS, Threshold

COLD, LOCAL_PREFIX, LOCAL_LMCACHE, PEER, RECOMPUTE = (
    "cold",
    "local-prefix",
    "local-lmcache",
    "peer",
    "recompute",
)
ARMS = (COLD, LOCAL_PREFIX, LOCAL_LMCACHE, PEER, RECOMPUTE)
# Through the gateway, ways to send a load stand where arms do.
GATEWAY, ROUND_ROBIN, ONE_SERVER = WAYS = ("gateway", "round-robin", "one-server")
DOCUMENTS, CONVERSATIONS, UNRELATED = LOADS = ("documents", "conversations", "unrelated")
TURNS = 8  # of a conversation, and how often a document is asked about
NODE_OF = {
    COLD: "prefill",
    LOCAL_PREFIX: "prefill",
    LOCAL_LMCACHE: "prefill",
    PEER: "decode",
    RECOMPUTE: "decode",
    GATEWAY: "all",
    ROUND_ROBIN: "all",
    ONE_SERVER: "prefill",
}
WORTH_QUOTING = 5  # repetitions
NEEDS_COLD = (LOCAL_PREFIX, LOCAL_LMCACHE, PEER)  # they reuse what the cold arm has computed
MEANING = {
    COLD: "prefill computes a fresh prompt",
    LOCAL_PREFIX: "prefill again, from vLLM's own prefix cache",
    LOCAL_LMCACHE: "prefill again, from LMCache's CPU memory, with vLLM's own cache out of the way",
    PEER: "decode, from prefill's cache over the network",
    RECOMPUTE: "decode computes a fresh prompt: the control, it must move nothing",
    GATEWAY: "the gateway chooses: prefill first, then decode, which pulls",
    ROUND_ROBIN: "each server in turn, its own prefix cache but nothing shared: the control",
    ONE_SERVER: "prefill alone does everything, from its own prefix cache",
}


@dataclass(frozen=True)
class Point:
    """One setting of the sweep: lengths in tokens, the load, and how much of a prompt is shared.

    Attributes:
        concurrency: requests in flight, each followed by the next as soon as it ends.
        rate: mean Poisson arrivals a second instead, or None.
        shared_percent: share of the whole chunks that a reusing prompt has in common with the cold one.
        requests: requests of each arm in one repetition.
        load: what the prompts have in common, where ways are compared; their longest has ``prompt_tokens``.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int = 1
    rate: float | None = None
    shared_percent: float = 100.0
    requests: int = 1
    load: str | None = None

    def shared_tokens(self, chunk_size: int) -> int:
        """Return how many leading tokens a reusing prompt shares, in whole chunks."""
        chunks = self.prompt_tokens // chunk_size
        return math.floor(chunks * self.shared_percent / 100 + 1e-9) * chunk_size

    @property
    def is_alone(self) -> bool:
        """Return whether each request had the servers to itself."""
        return self.concurrency == 1 and self.rate is None and self.load is None

    @property
    def tells_costs(self) -> bool:
        """Return whether times to first token are those of one whole pull or one whole prefill."""
        return self.is_alone and self.shared_percent == 100

    @property
    def label(self) -> str:
        """The point in a few words, e.g. ``1546+16 tokens, 4 in flight``."""
        load = f"{self.concurrency} in flight" if self.rate is None else f"{self.rate:g} req/s"
        shared = "" if self.shared_percent == 100 else f", {self.shared_percent:g} % shared"
        named = "" if self.load is None else f"{self.load}, "
        return f"{named}{self.prompt_tokens}+{self.output_tokens} tokens, {load}{shared}"


@dataclass(frozen=True)
class BenchSpec:
    """The client container's task: addresses, the points, and the seed of everything random.

    ``threshold`` is the running decode server's: what is below it is recomputed, and no pull expected.
    ``caches`` are where LMCache's own processes answer, by node; none where it is within vLLM.
    With ``gateway`` the arms are ways to send a load, and ``servers`` are all that it stands before, prefill
    first.
    """

    prefill: str
    decode: str
    controller: str
    prefill_instance: str
    points: tuple[Point, ...]
    arms: tuple[str, ...]
    repetitions: int
    chunk_size: int
    seed: int
    vocab: int = 259
    wait_s: float = 0.0
    threshold: Threshold = PULL_ALWAYS
    ranks: int = 1
    gateway: str | None = None
    servers: tuple[str, ...] = ()
    caches: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """Prefill's name in what the servers share KV by."""
        return self.prefill_instance

    def declined(self, point: Point) -> bool:
        """Return whether decode computes the point's prompts, since a pull would bring too little."""
        return self.threshold.declines(point.shared_tokens(self.chunk_size))


@dataclass(frozen=True)
class Goodput:
    """Limits that a request must meet, all of them, to count; milliseconds, None for no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
