"""What there is to watch: the stack as x-kvshare tells the services of the profile observe."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvshare.contract import ports_of_ranks, ranks_of

_PREFIX = "KVSHARE_OBSERVE_"
_FIRST_INSTANCE = 1  # lmcache_instance_1 is prefill's


@dataclass(frozen=True)
class Node:
    """A vLLM server: its API's port, and where the peers of each of its ranks dial first."""

    name: str
    host: str
    port: int
    instance: str
    peer_init_urls: tuple[str, ...]

    @property
    def url(self) -> str:
        """Where its API answers."""
        return f"http://{self.host}:{self.port}"

    @property
    def place(self) -> str:
        """Its address as Prometheus scrapes it."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Watched:
    """The stack, and how often the canary asks it; ``min_tokens`` as P2P_MIN_TOKENS is written."""

    host: str
    port: int
    canary_port: int
    controller_port: int
    gateway_port: int
    prefill: Node
    decodes: tuple[Node, ...]
    every_minutes: int
    lookup_timeout_ms: int
    min_tokens: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Watched":
        """Read what compose.yaml sets; KeyError or ValueError where it does not."""
        facts = {k.removeprefix(_PREFIX): v for k, v in environment.items() if k.startswith(_PREFIX)}
        ranks = ranks_of(facts["DEVICE"], facts["GPUS"], facts["CPU_RANKS"])
        hosts = facts["DECODES"].replace(",", " ").split()

        def node(service: str, name: str, host: str, number: int) -> Node:
            first, step = int(facts[f"{service}_INIT_PORT"]), int(facts["RANK_PORT_STEP"])
            urls = tuple(f"{host}:{port}" for port in ports_of_ranks(first, ranks, step))
            instance = f"lmcache_instance_{_FIRST_INSTANCE + number}"
            return Node(name, host, int(facts[f"{service}_PORT"]), instance, urls)

        names = ["decode"] if len(hosts) == 1 else [f"decode-{n}" for n, _ in enumerate(hosts, start=1)]
        return cls(
            host=facts["HOST"],
            port=int(facts["PORT"]),
            canary_port=int(facts["CANARY_PORT"]),
            controller_port=int(facts["CONTROLLER_PORT"]),
            gateway_port=int(facts["GATEWAY_PORT"]),
            prefill=node("PREFILL", "prefill", facts["PREFILL"], 0),
            decodes=tuple(
                node("DECODE", name, host, n)
                for n, (name, host) in enumerate(zip(names, hosts, strict=True), start=1)
            ),
            every_minutes=int(facts["EVERY_MINUTES"]),
            lookup_timeout_ms=int(facts["LOOKUP_TIMEOUT_MS"]),
            min_tokens=facts["MIN_TOKENS"] or "0",
        )

    @property
    def servers(self) -> tuple[Node, ...]:
        """Every vLLM server."""
        return (self.prefill, *self.decodes)

    @property
    def controller(self) -> str:
        """Where the controller's HTTP answers."""
        return f"http://{self.prefill.host}:{self.controller_port}"
