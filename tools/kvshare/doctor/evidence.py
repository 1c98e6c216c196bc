"""What the doctor saw: facts only, no judgement; times are seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvshare.contract import Facts
from kvshare.site.images import Image
from kvshare.stack.members import Member, Stack

OPERATOR = "the operator's machine"


@dataclass(frozen=True)
class Operator:
    """The machine that the tool runs on: its plugins' versions, empty where there is none."""

    compose: str
    buildx: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clock:
    """How far an engine's clock is ahead of the operator's, and by how much that may be off."""

    ahead_s: float
    uncertain_s: float


@dataclass(frozen=True)
class Engine:
    """The Docker engine behind a context, which keeps its data in ``folder``.

    ``apart``: what keeps its containers from the machine's own network.

    All but the first two fields are empty where it gave ``error``.
    """

    context: str
    error: str = ""
    machine: str = ""
    version: str = ""
    runtimes: tuple[str, ...] = ()
    image: Image | None = None
    folder: str = ""
    running: tuple[str, ...] = ()
    clock: Clock | None = None
    apart: str = ""


@dataclass(frozen=True)
class Gpus:
    """What nvidia-smi lists in a container, as ``index, uuid, name`` each; or why it does not."""

    driver: str = ""
    found: tuple[tuple[str, ...], ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Node:
    """One server's machine. ``refused``: what the engine refused of the service's own limits and devices."""

    name: str
    service: str
    context: str
    host: str
    pinned_gpus: str
    facts: Facts | None = None
    error: str = ""
    refused: str = ""
    gpus: Gpus | None = None


@dataclass(frozen=True)
class Dialed:
    """One connection that was tried; ``error`` is empty where it stood. ``free``: one of UCX's range."""

    source: str
    target: str
    host: str
    port: int
    purpose: str
    error: str
    free: bool = False


@dataclass(frozen=True)
class Link:
    """The way of KV from its owner to the peer that asks, measured on ``lanes`` at once; or why not."""

    source: str
    target: str
    bytes_per_s: float | None = None
    latency_s: float | None = None
    error: str = ""
    not_tried: str = ""
    lanes: int = 1

    @property
    def words(self) -> str:
        """A measured link's speed and latency."""
        return f"{(self.bytes_per_s or 0) / 1e9:.2f} GB/s, {(self.latency_s or 0) * 1e6:.0f} µs"


@dataclass(frozen=True)
class Behind:
    """The servers that the running gateway knows, by ``HOST:PORT``: whether each answers it; or an error."""

    answers: Mapping[str, bool] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class PrefillSpeed:
    """Prompt tokens a second of the prefill server; ``how`` says whether they were measured."""

    tokens_per_s: float
    how: str


@dataclass(frozen=True)
class Evidence:
    """Everything that was seen; ``environments`` are the services', resolved, by the members' names.

    ``behind``: None where no gateway runs. ``keys``: what tells the cluster keys of those that run
    apart, by name; ``next_key``: that of the next start, None where it makes one; '' is no key.
    """

    started: str
    stack: Stack
    operator: Operator
    engines: tuple[Engine, ...]
    nodes: tuple[Node, ...]
    environments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dialed: tuple[Dialed, ...] = ()
    unheld: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    prefill_speed: PrefillSpeed | None = None
    behind: Behind | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    next_key: str | None = None

    def engine(self, context: str) -> Engine:
        """Return the engine of a context."""
        return next(engine for engine in self.engines if engine.context == context)

    def node(self, name: str) -> Node:
        """Return the node of that name."""
        return next(node for node in self.nodes if node.name == name)

    @property
    def seen(self) -> dict[str, Facts]:
        """The facts of the nodes that gave any, by name."""
        return {node.name: node.facts for node in self.nodes if node.facts is not None}

    @property
    def machines(self) -> dict[str, tuple[str, Facts]]:
        """One node's name and facts for each context whose machine could be looked at."""
        found: dict[str, tuple[str, Facts]] = {}
        for node in self.nodes:
            if node.facts is not None:
                found.setdefault(node.context, (node.name, node.facts))
        return found

    @property
    def asked(self) -> tuple[Engine, ...]:
        """The engines that answered."""
        return tuple(engine for engine in self.engines if not engine.error)

    def members_on(self, context: str) -> tuple[Member, ...]:
        """Return the members that run on a context."""
        return tuple(member for member in self.stack.members if member.context == context)

    def runs(self, member: Member) -> bool:
        """Return whether a member runs already, started by this stack."""
        return member.service in self.engine(member.context).running
