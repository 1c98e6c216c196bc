"""The system as Compose resolves it: which service runs where, under which address and ports."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from kvshare.config.settings import Settings
from kvshare.contract import ports_of_ranks, ranks_of
from kvshare.errors import KvshareError, did_you_mean

LOOPBACK = "127.0.0.1"
COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Cache:
    """The cache server of a node with SHARING=multiprocess: LMCache in a process of its own."""

    service: str
    name: str
    context: str
    host: str
    port: int  # of its vLLM, and of peers that ask what it has
    http_port: int
    p2p_port: int
    nixl_port: int
    ranks: int  # of its vLLM
    data_ports: tuple[int, int] = (0, 0)  # first and last of the range out of which UCX takes its own

    @property
    def url(self) -> str:
        """Where `/status` and `/metrics` answer."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def nixl_url(self) -> str:
        """Where NIXL's own counters answer, on its own machine alone."""
        return f"http://{LOOPBACK}:{self.nixl_port}"

    @property
    def ports(self) -> tuple[int, ...]:
        """Every TCP port that it alone may listen on; UCX takes its own out of ``data_ports``."""
        return (self.port, self.http_port, self.p2p_port, self.nixl_port)


@dataclass(frozen=True)
class Server:
    """One vLLM server; ``name`` tells decode nodes apart, ``service`` does not.

    LMCache has a worker in each rank, or with SHARING=multiprocess runs beside it as its ``cache``.
    """

    service: str
    name: str
    context: str
    host: str
    instance: str
    api_port: int
    worker_ports: tuple[int, ...]
    p2p_init_ports: tuple[int, ...]
    p2p_lookup_ports: tuple[int, ...]
    nixl_port: int  # where NIXL tells the processes of its own machine what it counts
    data_ports: tuple[int, int] = (0, 0)  # first and last of the range out of which UCX takes its own
    cache: Cache | None = None

    @property
    def url(self) -> str:
        """Where the OpenAI API, `/health` and `/metrics` answer."""
        return f"http://{self.host}:{self.api_port}"

    @property
    def nixl_url(self) -> str:
        """Where NIXL's own counters answer, on the server's own machine alone."""
        return self.cache.nixl_url if self.cache else f"http://{LOOPBACK}:{self.nixl_port}"

    @property
    def ports(self) -> tuple[int, ...]:
        """Every TCP port that it alone may listen on; UCX takes its keeper's out of ``data_ports``."""
        if self.cache:
            return (self.api_port,)
        of_ranks = (*self.worker_ports, *self.p2p_init_ports, *self.p2p_lookup_ports)
        return (self.api_port, *of_ranks, self.nixl_port)

    @property
    def keeper(self) -> "Server | Cache":
        """What keeps its KV and is asked for it by peers."""
        return self.cache or self

    @property
    def ranks(self) -> int:
        """How many processes compute each layer together, each with KV of its own."""
        return self.cache.ranks if self.cache else len(self.worker_ports)

    @property
    def peer_init_urls(self) -> tuple[str, ...]:
        """The address that peers of each rank dial first, as the controller must hand it out."""
        return tuple(f"{self.host}:{port}" for port in self.p2p_init_ports)


@dataclass(frozen=True)
class Controller:
    """The LMCache controller, which runs on the prefill node.

    In its place runs the coordinator with SHARING=multiprocess, which has one port.
    """

    service: str
    name: str
    context: str
    host: str
    http_port: int
    pull_port: int = 0
    reply_port: int = 0
    heartbeat_port: int = 0

    @property
    def is_coordinator(self) -> bool:
        """Whether it only tells cache servers of each other."""
        return self.service == COORDINATOR

    @property
    def ports(self) -> tuple[int, ...]:
        """Every TCP port that it listens on."""
        of_workers = () if self.is_coordinator else (self.pull_port, self.reply_port, self.heartbeat_port)
        return (self.http_port, *of_workers)

    @property
    def url(self) -> str:
        """Where its HTTP interface answers."""
        return f"http://{self.host}:{self.http_port}"


@dataclass(frozen=True)
class Endpoint:
    """What runs the tool's own image on the prefill node, behind one HTTP port."""

    service: str
    name: str
    context: str
    host: str
    port: int

    @property
    def ports(self) -> tuple[int, ...]:
        """Every TCP port that it listens on."""
        return (self.port,)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self.host}:{self.port}"


class Gateway(Endpoint):
    """The one endpoint over all servers: the OpenAI API, whichever server computes."""


class Watcher(Endpoint):
    """What looks at the stack and serves nobody: Prometheus, or the canary."""


EngineMember = Controller | Cache | Server  # what runs the engine image
Member = EngineMember | Gateway | Watcher


def bound_to(member: Member, port: int) -> str:
    """Return the address on which a member listens on one of its ports."""
    return LOOPBACK if isinstance(member, Server | Cache) and port == member.nixl_port else member.host


WATCHERS = {"prometheus": "KVSHARE_OBSERVE_PORT", "canary": "KVSHARE_OBSERVE_CANARY_PORT"}
OBSERVE = "observe"  # the node that both are


@dataclass(frozen=True)
class Stack:
    """The whole system: one controller, one prefill server, the decode servers, gateway and watchers.

    Plain processes have no gateway, and nothing watches without OBSERVE in `.env`.
    """

    project: str
    device: str
    controller: Controller
    prefill: Server
    decodes: tuple[Server, ...]
    gateway: Gateway | None = None
    watchers: tuple[Watcher, ...] = ()

    @property
    def decode(self) -> Server:
        """The first decode server; the only one of a pair."""
        return self.decodes[0]

    def pairs(self, node: str | None = None) -> tuple[Self, ...]:
        """Return this stack with one decode server at a time, or with that one: reuse is proven pair by pair.

        KvshareError names a node that is no decode node.
        """
        names = [decode.name for decode in self.decodes]
        if node is not None and node not in names:
            raise KvshareError(f"--node {node} is no decode node{did_you_mean(node, names)}")
        return tuple(replace(self, decodes=(d,)) for d in self.decodes if node in (None, d.name))

    @property
    def servers(self) -> tuple[Server, ...]:
        """Every vLLM server."""
        return (self.prefill, *self.decodes)

    @property
    def caches(self) -> tuple[Cache, ...]:
        """Every cache server; none where LMCache runs in vLLM."""
        return tuple(server.cache for server in self.servers if server.cache)

    @property
    def engines(self) -> tuple[EngineMember, ...]:
        """What runs the engine image, and says what it is by a fingerprint."""
        return (self.controller, *self.caches, *self.servers)

    @property
    def members(self) -> tuple[Member, ...]:
        """Everything that runs for good, in the order of start."""
        return (*self.engines, *([self.gateway] if self.gateway else []), *self.watchers)

    @property
    def contexts(self) -> tuple[str, ...]:
        """The Docker contexts in use, each once."""
        return tuple(dict.fromkeys(member.context for member in self.members))

    def container_of(self, member: Member) -> str:
        """Return the name that Compose gives a member's container."""
        return f"{self.project}-{member.service}-1"

    def member(self, service: str) -> Member:
        """Return the first member of that service name; in a pair, the only one."""
        return next(member for member in self.members if member.service == service)

    def where(self, *names: str) -> str:
        """Return the place of members, by name or service: ``decode on 10.0.0.2 (context gpu-b)``."""
        members = [next(m for m in self.members if name in (m.name, m.service)) for name in names]
        return ", ".join(f"{m.name} on {m.host} (context {m.context})" for m in members)


def parse_stack(configs: Sequence[Mapping[str, Any]], settings: Settings) -> Stack:
    """Return the stack from each decode node's `docker compose config` and the user's decisions.

    KvshareError if a fact is missing, servers differ in their number of GPUs, or two members of one machine
    want one port.
    """
    try:
        facts = _facts(configs[0])
        stack = Stack(
            project=configs[0]["name"],
            device=settings.device,
            controller=_controller(facts, settings),
            prefill=_server("prefill", "prefill", facts, settings.prefill_context, settings.device),
            decodes=tuple(
                _server("decode", node.name, _facts(config), node.context, settings.device)
                for node, config in zip(settings.decode_nodes, configs, strict=True)
            ),
            gateway=_gateway(facts["gateway"], settings) if "gateway" in facts else None,
            watchers=_watchers(facts[OBSERVE], settings) if settings.observes else (),
        )
    except KeyError as missing:
        raise KvshareError(f"compose.yaml has no {missing} where x-kvshare should state it.") from None
    _require_equal_ranks(stack)
    _require_ports_apart(stack)
    return stack


def members_of(stack: Stack, node: str) -> tuple[Member, ...]:
    """Return the members of a node: prefill brings controller, gateway and what watches, all is everything.

    ``decode`` is every decode node; one of several is meant by its own name, such as ``decode-2``.
    """
    if node == "all":
        return stack.members
    if node == "prefill":
        away = (*stack.decodes, *(decode.cache for decode in stack.decodes))
        return tuple(member for member in stack.members if member not in away)
    if node == OBSERVE:
        return stack.watchers
    meant = [member for member in stack.members if node in (member.service, member.name)]
    beside = [member.cache for member in meant if isinstance(member, Server) and member.cache]
    return (*beside, *meant)


def by_context(members: Iterable[Member]) -> dict[str, list[str]]:
    """Return service names by the Docker context they belong to, in order of start."""
    grouped: dict[str, list[str]] = {}
    for member in members:
        grouped.setdefault(member.context, []).append(member.service)
    return grouped


def _require_equal_ranks(stack: Stack) -> None:
    """KvshareError if a server has another number of ranks than prefill, which splits KV otherwise."""
    for decode in stack.decodes:
        if decode.ranks != stack.prefill.ranks:
            raise KvshareError(
                f"prefill computes on {stack.prefill.ranks} GPUs and {decode.name} on {decode.ranks}, "
                "and neither could use the other's KV: list as many in PREFILL_GPU as in DECODE_GPU "
                "(DECODE_GPUS) of .env."
            )


def _require_ports_apart(stack: Stack) -> None:
    """KvshareError if two members of one context, and so of one machine's network, want the same port."""
    taken: dict[tuple[str, int], str] = {}
    for member in stack.members:
        for port in member.ports:
            other = taken.setdefault((member.context, port), member.name)
            if other != member.name:
                raise KvshareError(
                    f"{other} and {member.name} both want port {port} on context {member.context}: "
                    "give each a context of its own in .env, or other ports in x-kvshare of compose.yaml."
                )


def _facts(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What compose.yaml says, and compose.mp.yaml where it is merged."""
    return {**config["x-kvshare"], **config.get("x-kvshare-multiprocess", {})}


def _controller(every: Mapping[str, Any], settings: Settings) -> Controller:
    if facts := every.get(COORDINATOR):
        host, port = str(facts["KVSHARE_COORDINATOR_HOST"]), int(facts["KVSHARE_COORDINATOR_PORT"])
        return Controller(COORDINATOR, COORDINATOR, settings.prefill_context, host, port)
    facts = every["controller"]
    return Controller(
        service="controller",
        name="controller",
        context=settings.prefill_context,
        host=str(facts["KVSHARE_CONTROLLER_HOST"]),
        http_port=int(facts["KVSHARE_CONTROLLER_HTTP_PORT"]),
        pull_port=int(facts["KVSHARE_CONTROLLER_PULL_PORT"]),
        reply_port=int(facts["KVSHARE_CONTROLLER_REPLY_PORT"]),
        heartbeat_port=int(facts["KVSHARE_CONTROLLER_HEARTBEAT_PORT"]),
    )


def _gateway(facts: Mapping[str, Any], settings: Settings) -> Gateway:
    host, port = str(facts["KVSHARE_GATEWAY_HOST"]), int(facts["KVSHARE_GATEWAY_PORT"])
    return Gateway("gateway", "gateway", settings.prefill_context, host, port)


def _watchers(facts: Mapping[str, Any], settings: Settings) -> tuple[Watcher, ...]:
    host, context = str(facts["KVSHARE_OBSERVE_HOST"]), settings.prefill_context
    return tuple(Watcher(name, name, context, host, int(facts[port])) for name, port in WATCHERS.items())


def _server(service: str, name: str, every: Mapping[str, Any], context: str, device: str) -> Server:
    facts, shared = every[service], every["server"]
    first, _, last = str(shared["UCX_TCP_PORT_RANGE"]).partition("-")
    try:
        ranks = ranks_of(device, str(facts["KVSHARE_GPUS"]), str(shared["KVSHARE_CPU_RANKS"]))
    except ValueError as error:
        raise KvshareError(f"{name}: {error}; correct .env.") from None

    def ports(fact: str) -> tuple[int, ...]:
        return ports_of_ranks(int(facts[fact]), ranks, int(shared["KVSHARE_RANK_PORT_STEP"]))

    data_ports = (int(first), int(last or first))
    beside = every.get(f"{service}-cache")
    return Server(
        service=service,
        name=name,
        context=context,
        host=str(facts["KVSHARE_HOST"]),
        instance=str(facts["KVSHARE_INSTANCE"]),
        api_port=int(facts["KVSHARE_API_PORT"]),
        worker_ports=ports("KVSHARE_WORKER_PORT"),
        p2p_init_ports=ports("KVSHARE_P2P_INIT_PORT"),
        p2p_lookup_ports=ports("KVSHARE_P2P_LOOKUP_PORT"),
        nixl_port=int(facts["KVSHARE_NIXL_PORT"]),
        data_ports=data_ports,
        cache=beside and _cache(service, name, beside, context, ranks, data_ports),
    )


def _cache(
    service: str, name: str, facts: Mapping[str, Any], context: str, ranks: int, data_ports: tuple[int, int]
) -> Cache:
    return Cache(
        service=f"{service}-cache",
        name=f"{name}-cache",
        context=context,
        host=str(facts["KVSHARE_CACHE_HOST"]),
        port=int(facts["KVSHARE_CACHE_PORT"]),
        http_port=int(facts["KVSHARE_CACHE_HTTP_PORT"]),
        p2p_port=int(facts["KVSHARE_CACHE_P2P_PORT"]),
        nixl_port=int(facts["KVSHARE_CACHE_NIXL_PORT"]),
        ranks=ranks,
        data_ports=data_ports,
    )
