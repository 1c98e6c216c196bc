"""What was seen during one verification: facts only, no judgement, all of it plain JSON underneath."""

from dataclasses import dataclass, field

from kvshare.contract import Fingerprint
from kvshare.servers.readings import (
    Admission,
    ControllerProbe,
    Counters,
    Held,
    Position,
    ServerProbe,
    Sources,
    Wire,
)
from kvshare.stack.members import Stack

REFERENCE, SAME_SPLIT, PEER, CONTROL = "reference", "same split", "peer", "control"
LEGS = (REFERENCE, SAME_SPLIT, PEER, CONTROL)
CHANGED = "one chunk changed"  # what the answer would be if the KV of one chunk were another's
JUDGED = 1  # the number of the prompt that CHANGED is made from
EDGES, SALTS, ADAPTERS, AT_ONCE = "chunk edges", "salts", "adapters", "at once"
PREEMPTED, HUNG_UP = "preempted", "hung up"
ANEW = "anew"  # a leg of --deep: decode computes the prompt itself
THROUGH, HONEST = "through the gateway", "through the gateway, same split"
WARM_UP = 0  # the number of the prompt whose times count in no median: it warms both servers up


@dataclass(frozen=True)
class Spec:
    """What the client container is asked to do: addresses, sizes in tokens, limits in seconds.

    Attributes:
        deadline_s: for the requests of the proof, and as much again for those of ``verify --deep``.
        deep: whether to send those as well.
        gateway: where one endpoint stands before both servers; empty where none does.
        nixl: where the NIXL that moves KV tells what it counts; empty where it does not.
        caches: where LMCache's own processes answer, by node; empty where it is within vLLM.
        least_chunks: how many chunks a prompt has at least that decode pulls (P2P_MIN_TOKENS).
    """

    prefill: str
    decode: str
    controller: str
    prefill_instance: str
    decode_instance: str
    prompts: int
    prompt_tokens: int
    chunk_size: int
    seed: int
    vocab: int = 259
    max_tokens: int = 16
    wait_s: float = 0.0
    deadline_s: float = 300.0
    ranks: int = 1
    deep: bool = False
    least_chunks: int = 1
    gateway: str = ""
    nixl: str = ""
    caches: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """Prefill's name in what the servers share KV by."""
        return self.prefill_instance


@dataclass(frozen=True)
class Leg:
    """One request: times in milliseconds from its sending; ``error`` is set instead of them if it failed."""

    prompt: int
    leg: str
    node: str
    request_id: str
    tokens: int
    ttft_ms: float | None = None
    e2e_ms: float | None = None
    sources: Sources | None = None
    output: tuple[Position, ...] = ()
    error: str | None = None

    @property
    def warm_up(self) -> bool:
        """Whether its time is left out: the control has none."""
        return self.prompt == WARM_UP and self.leg != CONTROL


@dataclass(frozen=True)
class Trial:
    """One thing tried with ``verify --deep``: requests to decode, sent at once where there are several.

    Attributes:
        kind: which check judges it.
        what: what it is, in the words of a report.
        due: tokens of all their prompts that decode must take from its peer; None where any number is right.
        held: the requests to prefill whose KV decode may take.
        asked: the requests to decode, whose answers are judged.
        honest: an answer for each of them that is known to be right.
        sources: where the prompt tokens of ``asked`` came from, all together.
    """

    kind: str
    what: str
    due: int | None
    held: tuple[Leg, ...]
    asked: tuple[Leg, ...]
    honest: tuple[Leg, ...]
    sources: Sources | None


@dataclass(frozen=True)
class Pressure:
    """How full decode's memory was made: requests at once of so many tokens; 0 where no number would do."""

    memory_tokens: int
    requests: int
    tokens: int
    preemptions: int


@dataclass(frozen=True)
class HangUps:
    """Clients that hung up: how many of those sent did so before their answer ended.

    What each server held for requests before and at last, and whether it was started anew in between.
    """

    sent: int
    cut: int
    before: dict[str, Held | None]
    after: dict[str, Held | None]
    restarted: tuple[str, ...]


@dataclass(frozen=True)
class Deep:
    """What ``verify --deep`` saw beside the proof; ``adapters`` are those that both servers have."""

    adapters: tuple[str, ...]
    trials: tuple[Trial, ...]
    pressure: Pressure | None
    hang_ups: HangUps | None


@dataclass(frozen=True)
class Through:
    """A fresh prompt through the gateway, and what both servers counted of it.

    ``honest`` is the same prompt's answer from prefill's own prefix cache.
    """

    leg: Leg
    prefill: Sources | None
    decode: Sources | None
    honest: Leg


@dataclass(frozen=True)
class Traffic:
    """Everything that the client container saw.

    Attributes:
        wire: what NIXL counted from the first leg to the last where KV is moved, None where it tells nothing.
        pulled: the bytes that decode's cache server read in that time, by the address of the peer.
        chunk_bytes: of a chunk's KV, all ranks together, as LMCache keeps it on the owner.
    """

    spec: Spec
    prefill: ServerProbe
    decode: ServerProbe
    controller: ControllerProbe
    admissions: tuple[Admission, ...] = ()
    legs: tuple[Leg, ...] = ()
    owner_start: Counters | None = None
    owner_after_control: Counters | None = None
    owner_end: Counters | None = None
    decode_start: Counters | None = None
    decode_end: Counters | None = None
    wire: Wire | None = None
    chunk_bytes: float | None = None
    pulled: dict[str, float] | None = None
    gateway: Through | None = None
    seconds: float = 0.0
    deep: Deep | None = None


@dataclass(frozen=True)
class Container:
    """A service's container as its engine describes it; ``state`` is ``missing`` where there is none."""

    service: str
    name: str
    state: str
    health: str = ""
    exit_code: int = 0
    image_id: str = ""
    fingerprint: Fingerprint | None = None
    error: str | None = None


@dataclass(frozen=True)
class EngineProbe:
    """A Docker engine; ``error`` says why it could not be asked."""

    context: str
    error: str | None = None


@dataclass(frozen=True)
class Hit:
    """LMCache's log line about one lookup: how many of a request's tokens it can get."""

    request_id: str
    hit_tokens: int


@dataclass(frozen=True)
class Logs:
    """What the containers' logs say; None where a log could not be read."""

    decode_hits: tuple[Hit, ...] | None = None
    owner_lookups: tuple[str, ...] | None = None
    controller_errors: tuple[str, ...] | None = None
    lookup_timeouts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Everything that was seen, on both sides; ``client_error`` says why there is no traffic."""

    started: str
    stack: Stack
    engines: tuple[EngineProbe, ...]
    containers: tuple[Container, ...]
    logs: Logs
    traffic: Traffic | None = None
    client_error: str | None = None

    @property
    def is_deep(self) -> bool:
        """Whether the requests of ``verify --deep`` were sent."""
        return self.traffic is not None and self.traffic.deep is not None

    def container(self, service: str) -> Container:
        """Return the container of that service."""
        return next(container for container in self.containers if container.service == service)
