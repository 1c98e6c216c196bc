"""What was seen during one verification: facts only, no judgement, all of it plain JSON underneath."""

from dataclasses import dataclass

from kvshare.contract import Fingerprint
from kvshare.servers.readings import Admission, ControllerProbe, Counters, Position, ServerProbe, Sources
from kvshare.stack.members import Stack

REFERENCE, SAME_SPLIT, PEER, CONTROL = "reference", "same split", "peer", "control"
LEGS = (REFERENCE, SAME_SPLIT, PEER, CONTROL)
CHANGED = "one chunk changed"  # what the answer would be if the KV of one chunk were another's
JUDGED = 1  # the number of the prompt that CHANGED is made from
WARM_UP = 0  # the number of the prompt whose times count in no median: it warms both servers up


@dataclass(frozen=True)
class Spec:
    """What the client container is asked to do: addresses, sizes in tokens, limits in seconds."""

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
class Traffic:
    """Everything that the client container saw."""

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
    seconds: float = 0.0


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

    def container(self, service: str) -> Container:
        """Return the container of that service."""
        return next(container for container in self.containers if container.service == service)
