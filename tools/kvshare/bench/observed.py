"""What the client saw, as it goes over the wire: one JSON line for each of these, in order."""

from dataclasses import dataclass
from typing import Self

from kvshare.bench.spec import Point
from kvshare.servers.readings import Counters, EngineTimes, Sources


@dataclass(frozen=True)
class Request:
    """One request: times in milliseconds from its sending; ``error`` is set instead of them if it failed.

    Attributes:
        sent_s: when it was sent, in seconds from the arm's start.
        output_tokens: as `usage` counts them.
        gaps_ms: the time between each chunk with a token and the one before it.
    """

    request_id: str
    sent_s: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft_ms: float | None = None
    e2e_ms: float | None = None
    gaps_ms: tuple[float, ...] = ()
    error: str | None = None

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first: (E2E - TTFT) / (output tokens - 1)."""
        if self.ttft_ms is None or self.e2e_ms is None or self.output_tokens < 2:
            return None
        return (self.e2e_ms - self.ttft_ms) / (self.output_tokens - 1)


@dataclass(frozen=True)
class ArmRun:
    """One arm of one repetition.

    Attributes:
        wall_s: from the first request's sending to the last one's last token.
        sources: prompt tokens by source that vLLM counted, or None where it did not say.
        fault: why these figures do not count, or None.
    """

    arm: str
    requests: tuple[Request, ...]
    wall_s: float
    sources: Sources | None = None
    engine: EngineTimes | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Repetition:
    """One repetition of a point, its arms in the order in which they ran; ``discarded`` says why, if so."""

    point: int
    number: int
    arms: tuple[ArmRun, ...]
    admission_s: float | None = None
    discarded: str | None = None

    def arm(self, name: str) -> ArmRun | None:
        """Return an arm if it ran and counts."""
        if self.discarded is not None:
            return None
        return next((run for run in self.arms if run.arm == name and run.fault is None), None)


@dataclass(frozen=True)
class Opening:
    """Who answers, and the first pull of the pair, which is shown apart."""

    model: str
    max_model_len: int | None
    points: tuple[Point, ...]
    first_pull: ArmRun | None = None


@dataclass(frozen=True)
class PointEnd:
    """LMCache's counters over one point: the owner's rise, and decode's time to copy KV into the engine."""

    point: int
    owner: Counters | None = None
    copies: float = 0.0
    copy_seconds: float = 0.0


@dataclass(frozen=True)
class Closing:
    """The end; ``stopped`` says why it came early, or is None."""

    seconds: float
    stopped: str | None = None


@dataclass(frozen=True)
class Line:
    """One line of the client's output: exactly one of these is set."""

    opening: Opening | None = None
    repetition: Repetition | None = None
    point_end: PointEnd | None = None
    closing: Closing | None = None


@dataclass(frozen=True)
class Observed:
    """Everything that came from the client, complete or not."""

    opening: Opening | None = None
    repetitions: tuple[Repetition, ...] = ()
    point_ends: tuple[PointEnd, ...] = ()
    closing: Closing | None = None

    def add(self, line: Line) -> Self:
        """Return it with one more line."""
        return type(self)(
            line.opening or self.opening,
            (*self.repetitions, *([line.repetition] if line.repetition else [])),
            (*self.point_ends, *([line.point_end] if line.point_end else [])),
            line.closing or self.closing,
        )
