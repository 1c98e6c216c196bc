"""What is done to the two machines, and what must not have happened to them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kvshare.config.settings import CONTROLLER, MULTIPROCESS
from kvshare.servers import metrics
from kvshare.servers.http import Http
from tests.rig import engines, network
from tests.rig.network import DECODE, PREFILL, Host, Link
from tests.scenarios.conftest import FILES, Outcome, TwoMachines
from tests.scenarios.under_faults.traffic import PORTS, Sent, Traffic, as_operator, cache_of, controller

SERVICES = (("controller", PREFILL), ("prefill", PREFILL), ("decode", DECODE))
HOST_OF = dict(SERVICES)
# What stands for them, in the order of start, where LMCache runs in processes of its own.
BESIDE = {
    "controller": ("coordinator",),
    "prefill": ("prefill-cache", "prefill"),
    "decode": ("decode-cache", "decode"),
}
# What LMCache and vLLM say when a page has two owners, or an engine has died.
MUST_NOT_SAY = ("Double free", "KeyError", "EngineDeadError", "Engine core initialization failed")
REJECTED = "lmcache:rejected_messages_total"
SETTLE_S = 90
SLOW = Link(rate=4e6)  # bytes a second: a chunk of 6.5 MB is under way for more than a second
UNDER_WAY_S = 0.8
CACHE_CHUNKS = 80  # what a server's 0.5 GiB holds of 6.25 MiB each


@dataclass(frozen=True)
class Socket:
    """A ZMQ port: who listens, the name under which its messages are counted, and how it is spoken to."""

    owner: str
    name: str
    role: str
    host: Host
    port: int


OF_CONTROLLER = (
    Socket("controller", "pull", "push", PREFILL, 8300),
    Socket("controller", "reply", "dealer", PREFILL, 8400),
    Socket("controller", "heartbeat", "dealer", PREFILL, 8600),
    Socket("prefill", "worker", "dealer", PREFILL, 8500),
    Socket("prefill", "p2p_init", "dealer", PREFILL, 8200),
    Socket("prefill", "p2p_lookup", "dealer", PREFILL, 8201),
    Socket("decode", "worker", "dealer", DECODE, 8501),
    Socket("decode", "p2p_init", "dealer", DECODE, 8202),
    Socket("decode", "p2p_lookup", "dealer", DECODE, 8203),
)
OF_CACHE_SERVERS = (
    Socket("prefill", "requests", "dealer", PREFILL, 8500),
    Socket("prefill", "p2p", "req", PREFILL, 8200),
    Socket("decode", "requests", "dealer", DECODE, 8501),
    Socket("decode", "p2p", "req", DECODE, 8202),
)
SOCKETS = {CONTROLLER: OF_CONTROLLER, MULTIPROCESS: OF_CACHE_SERVERS}
SERVERS = {host.name: f"http://{host.address}:{port}" for host, port in PORTS.items()}


@dataclass
class Stack:
    """The stack of both machines, as it is broken and mended."""

    machines: TwoMachines

    def make_whole(self, traffic: Traffic) -> None:
        """Bring back whatever an earlier scenario has left broken; reuse works afterwards."""
        for host in (PREFILL, DECODE):
            network.heal(host)
            network.unshape(host)
        if self.machines.overlays or not all(self.is_running(service) for service in HOST_OF):
            self.up()
        for host in (PREFILL, DECODE):
            traffic.wait_until_up(host)
        traffic.seconds_until_reuse(SETTLE_S)

    def up(self, *overlays: Path, node: str = "all") -> None:
        """Start what is missing or differs, with these overlays."""
        files = ":".join([FILES[self.machines.sharing], *map(str, overlays)])
        outcome = self.machines.up(node, COMPOSE_FILE=files)
        assert outcome.code == 0, outcome.err
        self.machines.overlays = overlays

    @property
    def sockets(self) -> tuple[Socket, ...]:
        return SOCKETS[self.machines.sharing]

    def rejected(self, service: str) -> dict[str, float]:
        """What a service counts as rejected, by the name of the socket, as its metrics tell."""
        if service == "controller":
            http = controller()
        elif self.machines.sharing == MULTIPROCESS:
            http = cache_of(HOST_OF[service]).http
        else:
            http = Http(SERVERS[service])
        samples = metrics.parse(as_operator(lambda: http.get("/metrics", timeout=10)))
        return {s.labels["socket"]: s.value for s in samples if s.name == REJECTED}

    def parts(self, service: str) -> tuple[str, ...]:
        """The containers that one of the three is, in the order of start."""
        return BESIDE.get(service, (service,)) if self.machines.sharing == MULTIPROCESS else (service,)

    def kill(self, service: str) -> None:
        """End a service as a power cut would; it stays down."""
        self._docker(service, "kill", "--signal=KILL", *map(container, self.parts(service)))

    def kill_during_a_pull(self, service: str, traffic: Traffic) -> Sent:
        """Kill it while decode pulls, over a slow cable, from prefill; returns what came of the request."""
        known = traffic.know(1)[0]
        network.shape(DECODE, SLOW)
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(traffic.ask, DECODE, known, f"{service} killed")
            time.sleep(UNDER_WAY_S)
            assert not asked.done(), f"the transfer was over before {service} was killed"
            self.kill(service)
            sent = asked.result()
        network.unshape(DECODE)
        return sent

    def start(self, service: str) -> None:
        self._docker(service, "start", *map(container, self.parts(service)))

    def stop(self, service: str) -> None:
        self._docker(service, "stop", "--time=10", *map(container, reversed(self.parts(service))))

    def is_running(self, service: str) -> bool:
        names = self._docker(service, "ps", "--format={{.Names}}").split()
        return {container(part) for part in self.parts(service)} <= {*names}

    def started_at(self, service: str) -> str:
        """When each of its containers was started last, a line each."""
        each = map(container, self.parts(service))
        return self._docker(service, "inspect", "--format={{.State.StartedAt}}", *each).strip()

    def said_since_started(self, service: str) -> str:
        """What the processes of a service that run now have logged."""
        each = zip(self.parts(service), self.started_at(service).splitlines(), strict=True)
        return "".join(
            self._docker(service, "logs", f"--since={started}", container(part), both=True)
            for part, started in each
        )

    def said(self, service: str, since: datetime) -> str:
        """A service's log since a moment, both its streams."""
        ask = ("logs", f"--since={since.isoformat()}")
        each = map(container, self.parts(service))
        return "".join(self._docker(service, *ask, one, both=True) for one in each)

    def has(self, service: str, path: str) -> bool:
        """Whether there is such a file or folder in a container that the service is."""
        look = ("sh", "-c", f"ls -d {path} || true")
        each = map(container, self.parts(service))
        return any(self._docker(service, "exec", one, *look).strip() for one in each)

    def memory_bytes(self, service: str) -> int:
        """Anonymous memory of all the service's processes, in bytes."""
        tops = (self._docker(service, "top", container(part), "-eo", "pid") for part in self.parts(service))
        return sum(anonymous_bytes(int(pid)) for top in tops for pid in top.split()[1:])

    @contextmanager
    def survivors(self, *services: str, must_not_say: Sequence[str] = ()) -> Iterator[None]:
        """While the block runs, none of these restarts or says what it must not, or any of these words."""
        since, started = datetime.now(UTC), {service: self.started_at(service) for service in services}
        yield
        for service in services:
            assert self.started_at(service) == started[service], f"{service} did not survive"
            said = self.said(service, since)
            found = [words for words in (*MUST_NOT_SAY, *must_not_say) if words in said]
            assert not found, f"{service} said {found}:\n" + said[-3000:]

    def verify(self) -> Outcome:
        return self.machines.verify()

    def _docker(self, service: str, *arguments: str, both: bool = False) -> str:
        host = next(HOST_OF[one] for one, parts in BESIDE.items() if service in (one, *parts))
        return engines.docker(host, *arguments, both=both)


def anonymous_bytes(pid: int) -> int:
    """Source: proc(5), VmRSS is RssAnon, RssFile and RssShmem; 0 for a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon:"))


def container(service: str) -> str:
    return f"kvshare-{service}-1"
