"""A benchmark's document, as docs/bench.schema.json has it; times in ms, speeds in GB/s of 10⁹ bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from kvshare.bench.spec import Goodput, Point
from kvshare.bench.stages import Moments, Stages
from kvshare.bench.stats import Distribution, Ratio
from kvshare.config.threshold import PULL_ALWAYS, Threshold
from kvshare.cost.model import Prefill, Pull
from kvshare.records import one_of
from kvshare.servers.readings import Sources

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Arm:
    """One arm at one point, over the repetitions that count.

    Attributes:
        request_throughput: answered requests a second of wall time, median over repetitions.
        output_throughput: output tokens a second likewise.
        total_throughput: prompt and output tokens a second likewise.
        goodput: requests a second that met every limit, or None without limits.
        prefill_ms: vLLM's own time from scheduled to first token, mean; queue_ms, decode_ms likewise.
    """

    arm: str
    node: str
    repetitions: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    ttft_ms: Distribution | None
    tbt_ms: Distribution | None
    tpot_ms: Distribution | None
    e2e_ms: Distribution | None
    request_throughput: float | None
    output_throughput: float | None
    total_throughput: float | None
    goodput: float | None
    queue_ms: float | None
    prefill_ms: float | None
    decode_ms: float | None
    sources: Sources


@dataclass(frozen=True)
class Transfer:
    """The pulls of one point: the owner's own count and time of them, and the bytes from model and tokens."""

    pulls: int
    tokens_per_pull: float
    mean_ms: float
    bytes_per_pull: float | None
    gb_per_s: float | None
    of_link: float | None = None


@dataclass(frozen=True)
class Against:
    """The gateway's figures over those of another way, both of each repetition; a time below 1 is sooner.

    Attributes:
        tbt_p99: None where no answer had two tokens.
        requests: answered requests a second; below 1 are fewer.
    """

    way: str
    ttft_p50: Ratio
    ttft_p99: Ratio
    tbt_p99: Ratio | None
    requests: Ratio

    @property
    def named(self) -> dict[str, Ratio]:
        """The ratios by what they are of."""
        found = {"TTFT p50": self.ttft_p50, "TTFT p99": self.ttft_p99, "req/s": self.requests}
        return found if self.tbt_p99 is None else found | {"TBT p99": self.tbt_p99}

    @property
    def better(self) -> tuple[str, ...]:
        """In what the gateway is better, beyond chance."""
        return tuple(n for n, r in self.named.items() if (r.low > 1 if n == "req/s" else r.high < 1))

    @property
    def worse(self) -> tuple[str, ...]:
        """In what it is worse, beyond chance."""
        return tuple(n for n, r in self.named.items() if (r.high < 1 if n == "req/s" else r.low > 1))


@dataclass(frozen=True)
class PointResult:
    """What one point gave; ``notes`` say what was discarded, and why.

    ``peer_over_recompute`` is of times to first token, on decode, of requests that had the servers to
    themselves; None where there were others, or one of the two arms was not measured. ``against`` has one
    for each other way where the gateway is compared.
    """

    point: Point
    arms: tuple[Arm, ...]
    repetitions: int
    admission_ms: float | None
    transfer: Transfer | None
    stages: Stages | None
    notes: tuple[str, ...]
    peer_over_recompute: Ratio | None = None
    against: tuple[Against, ...] = ()

    def arm(self, name: str) -> Arm | None:
        """Return an arm that has figures."""
        return next((arm for arm in self.arms if arm.arm == name and arm.ttft_ms is not None), None)

    def ttft_ms(self, name: str) -> float:
        """Return an arm's median time to first token; LookupError if it has none."""
        found = self.arm(name)
        if found is None or found.ttft_ms is None:
            raise LookupError(f"the arm {name} has no figures at {self.point.label}")
        return found.ttft_ms.p50


@dataclass(frozen=True)
class Model:
    """The model served; KV bytes of one token, None where its configuration cannot be read."""

    name: str
    max_model_len: int | None
    kv_bytes_per_token: int | None


@dataclass(frozen=True)
class Link:
    """What the link carries, as the KV transfer would use it; ``reason`` says why that is not known."""

    gb_per_s: float | None
    how: str
    reason: str | None = None


@dataclass(frozen=True)
class Cost:
    """The fits of this run, and the length in tokens from which a pull pays (None: never)."""

    pull: Pull
    prefill: Prefill
    transfer: Pull | None
    break_even_tokens: float | None
    shortest: int
    longest: int

    @property
    def extrapolated(self) -> bool:
        """Whether the break-even lies outside the measured lengths."""
        n = self.break_even_tokens
        return n is not None and not self.shortest <= n <= self.longest


@dataclass(frozen=True)
class RunFingerprint:
    """What ran where, so that figures are compared with their like.

    Attributes:
        configuration_hash: sha256 of everything here that must be equal for a fair comparison.
        nodes: by node: versions, patches, image id, UCX settings, LMCache's configuration, GPU, NIC, CPU.
    """

    kvshare: str
    device: str
    transport: str
    configuration_hash: str
    nodes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What a document needs besides the client's lines; ``moments`` by request id."""

    started: str
    ended: str
    seconds: float
    kv_bytes_per_token: int | None
    moments: Mapping[str, Moments]
    link: Link
    fingerprint: RunFingerprint
    goodput: Goodput | None = None


@dataclass(frozen=True)
class Document:
    """One benchmark, complete or interrupted (``ended``); ``threshold`` is decode's P2P_MIN_TOKENS."""

    schema_version: Annotated[int, one_of(SCHEMA_VERSION)]
    started: str
    ended: str
    seconds: float
    seed: int
    arms: tuple[str, ...]
    repetitions: int
    chunk_size: int
    model: Model
    first_pull_ms: float | None
    points: tuple[PointResult, ...]
    link: Link
    cost: Cost | None
    verdict: str
    moved_tokens: int
    goodput: Goodput | None
    fingerprint: RunFingerprint
    notes: tuple[str, ...] = ()
    threshold: Threshold = PULL_ALWAYS
