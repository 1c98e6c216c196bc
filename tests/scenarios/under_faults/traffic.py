"""Clients on the operator's host; every answer is checked against one that was computed before the fault."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client.samples import Sample

from kvshare.config.settings import CONTROLLER, MULTIPROCESS
from kvshare.servers import metrics
from kvshare.servers.completion import Ask, Completion, complete
from kvshare.servers.http import Http, RequestFailedError
from kvshare.servers.multiprocess import CacheClient
from kvshare.servers.prompts import make_prompts
from kvshare.servers.readings import Position, Sources
from kvshare.verify.tolerance import distance, first_divergence, is_explained, make_limit
from tests.rig import network
from tests.rig.network import DECODE, OPERATOR, PREFILL, Host
from tests.scenarios.keys import controllers_token

MODEL, VOCAB, DTYPE = "/models/kvshare-demo", 259, "float32"
CHUNK, TOKENS, OUTPUT = 256, 266, 4
CHUNKS_OF_TOKENS = TOKENS // CHUNK * CHUNK
PORTS = {PREFILL: 8010, DECODE: 8011}
CACHES = {PREFILL: 8201, DECODE: 8203}  # of cache servers, where there are any
CONTROLLER_URL = f"http://{PREFILL.address}:9000"
LOOKUP_TIMEOUT_S = 3.0
COMPUTE_S = 5.0  # a few prompts at once, on two cores that do all else as well
WAIT_S = LOOKUP_TIMEOUT_S + COMPUTE_S  # the longest that a fault may keep a request waiting
POLL_S = 0.2
ADMITTED_S = 0.5  # by when the controller has heard of a prompt
REMEMBERED = 20
T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """A prompt, and the answer to it that one server computed from nothing."""

    prompt: tuple[int, ...]
    answer: tuple[Position, ...]


@dataclass(frozen=True)
class Sent:
    """A request: its class, seconds until its first token or its failure, and what was wrong with it."""

    kind: str
    node: str
    waited_s: float
    error: str | None = None
    wrong: str | None = None


@dataclass
class Traffic:
    """The requests of one scenario; ``addresses`` may change when a server returns elsewhere."""

    seed: int
    api_key: str | None = None
    sharing: str = CONTROLLER
    addresses: dict[Host, str] = field(default_factory=lambda: {host: host.address for host in PORTS})
    sent: list[Sent] = field(default_factory=list)
    _drawn: int = 0

    def know(self, count: int, tokens: int = TOKENS, host: Host = PREFILL) -> list[Known]:
        """Have ``count`` fresh prompts computed, which that server then holds."""
        self._drawn += 1
        prompts = make_prompts(count, tokens, VOCAB, seed=self.seed * 1000 + self._drawn)
        return as_operator(lambda: [self._learn(host, prompt) for prompt in prompts])

    def ask(self, host: Host, known: Known, kind: str = "hit") -> Sent:
        """Send one prompt and check its answer; a failure is a result."""
        return as_operator(lambda: self._ask(host, known, kind, self.http(host)))

    def ask_all(self, host: Host, several: Iterable[Known], kind: str = "hit") -> list[Sent]:
        return [self.ask(host, known, kind) for known in several]

    @contextmanager
    def running(
        self, hosts: Sequence[Host], pool: Sequence[Known], clients: int = 2, pause_s: float = 0.2
    ) -> Iterator[None]:
        """Clients that go on asking for what is known, each in an order of its own, until the block ends."""

        def client(dice: random.Random, stop: threading.Event) -> None:
            while not stop.wait(pause_s):
                host = dice.choice(hosts)
                self._ask(host, dice.choice(pool), "traffic", self.http(host))

        with self._clients(clients, client):
            yield

    @contextmanager
    def mixed(self, clients: int, tokens: int) -> Iterator[None]:
        """Clients that have fresh prompts computed, pull them on the other node, and ask for old ones."""

        def client(dice: random.Random, stop: threading.Event) -> None:
            old: deque[Known] = deque(maxlen=REMEMBERED)
            while not stop.is_set():
                owner, other = dice.sample(list(PORTS), 2)
                prompt = make_prompts(1, tokens, VOCAB, dice.randrange(2**31))[0]
                known = self._first(owner, prompt, self.http(owner))
                stop.wait(ADMITTED_S)
                if known is not None:
                    self._ask(other, known, "peer hit", self.http(other))
                    old.append(known)
                if old:
                    self._ask(owner, dice.choice(old), "again", self.http(owner))

        with self._clients(clients, client):
            yield

    @contextmanager
    def _clients(
        self, count: int, client: Callable[[random.Random, threading.Event], None]
    ) -> Iterator[None]:
        stop = threading.Event()

        def run(number: int) -> None:
            network.enter(OPERATOR)
            client(random.Random(self.seed * 100 + number), stop)

        with ThreadPoolExecutor(count) as threads:
            ends = [threads.submit(run, number) for number in range(count)]
            try:
                yield
            finally:
                stop.set()
        for end in ends:
            end.result()

    def meet_every_length(self, most: int) -> None:
        """Have each server compute every number of tokens up to this one: vLLM keeps kernels for each."""
        prompts = [make_prompts(1, length, VOCAB, self.seed + length)[0] for length in range(1, most + 1)]
        as_operator(lambda: [self._learn(host, prompt) for prompt in prompts for host in PORTS])

    def seconds_until_reuse(self, deadline_s: float, owner: Host = PREFILL) -> float:
        """Seconds from now until a fresh prompt of one node is served from it on the other.

        TimeoutError at the deadline. Nothing else may ask meanwhile: the counters are the whole server's.
        """
        start, puller = time.monotonic(), DECODE if owner is PREFILL else PREFILL
        while time.monotonic() - start < deadline_s:
            try:
                known = self.know(1, host=owner)[0]
                before = self.sources(puller)
                if self.ask(puller, known, "recovery").error is None:
                    moved = self.sources(puller) - before
                    if moved.external_kv_transfer >= CHUNKS_OF_TOKENS:
                        return time.monotonic() - start
            except RequestFailedError:
                pass
            time.sleep(POLL_S)
        raise TimeoutError(f"no reuse within {deadline_s:.0f} s")

    def sources(self, host: Host) -> Sources:
        """A server's prompt tokens by source; RequestFailedError if it does not tell."""
        found = metrics.sources(self._scrape(host))
        if found is None:
            raise RequestFailedError(f"{host.name} does not count its prompt tokens")
        return found

    def evicted(self, host: Host) -> int:
        """Keys that a server's cache has given up since its start; exported every two seconds."""
        if self.sharing == MULTIPROCESS:
            samples = as_operator(cache_of(host).samples)
            return int(metrics.total(samples, "lmcache_mp_l1_evicted_chunks_total") or 0)
        return self._counted(host, "lmcache:local_cpu_evict_keys_count_total")

    def declined(self, host: Host) -> int:
        """Pulls that a server has not made since its start, because they would bring too little."""
        return self._counted(host, "lmcache:declined_pulls_total")

    def faulty(self) -> list[Sent]:
        return [one for one in self.sent if one.error or one.wrong]

    def slowest(self, count: int = 5) -> list[Sent]:
        return sorted(self.sent, key=lambda one: -one.waited_s)[:count]

    def is_up(self, host: Host) -> bool:
        try:
            as_operator(lambda: self.http(host).get("/health"))
        except RequestFailedError:
            return False
        return True

    def wait_until_up(self, host: Host, deadline_s: float = 240) -> None:
        end = time.monotonic() + deadline_s
        while not self.is_up(host):
            if time.monotonic() > end:
                raise TimeoutError(f"{host.name} did not answer within {deadline_s:.0f} s")
            time.sleep(POLL_S)

    def _counted(self, host: Host, counter: str) -> int:
        return int(metrics.total(self._scrape(host), counter) or 0)

    def _scrape(self, host: Host) -> tuple[Sample, ...]:
        return metrics.parse(as_operator(lambda: self.http(host).get("/metrics", timeout=10)))

    def http(self, host: Host) -> Http:
        """A new connection: the server may close a kept one, idle for 5 s, just as it is used again."""
        return Http(f"http://{self.addresses[host]}:{PORTS.get(host, PORTS[DECODE])}", self.api_key)

    def _learn(self, host: Host, prompt: tuple[int, ...]) -> Known:
        return Known(prompt, self._complete(self.http(host), prompt).output)

    def _first(self, host: Host, prompt: tuple[int, ...], http: Http) -> Known | None:
        """Have a prompt computed as a request like the others; None if that fails."""
        start = time.monotonic()
        try:
            answer = self._complete(http, prompt)
        except RequestFailedError as error:
            self.sent.append(Sent("miss", host.name, time.monotonic() - start, error=str(error)))
            return None
        self.sent.append(Sent("miss", host.name, answer.ttft_ms / 1000))
        return Known(prompt, answer.output)

    def _ask(self, host: Host, known: Known, kind: str, http: Http) -> Sent:
        start = time.monotonic()
        try:
            answer = self._complete(http, known.prompt)
        except RequestFailedError as error:
            sent = Sent(kind, host.name, time.monotonic() - start, error=str(error))
        else:
            sent = Sent(kind, host.name, answer.ttft_ms / 1000, wrong=difference(known, answer))
        self.sent.append(sent)
        return sent

    def _complete(self, http: Http, prompt: Sequence[int]) -> Completion:
        request_id = f"fault-{self.seed}-{time.monotonic_ns()}"
        return complete(http, MODEL, Ask(request_id, prompt, OUTPUT, logprobs=True))


def controller() -> Http:
    """The controller's HTTP, asked by who has the cluster's key."""
    return Http(CONTROLLER_URL, controllers_token())


def cache_of(host: Host) -> CacheClient:
    """A host's cache server, asked by who has the cluster's key."""
    return CacheClient(f"http://{host.address}:{CACHES[host]}", controllers_token())


def peers_of(host: Host) -> set[str]:
    """The addresses of those that a host's cache server asks for KV; none where it does not answer."""
    return {url.partition(":")[0] for url in as_operator(cache_of(host).probe).peers}


def registered(sharing: str) -> set[str]:
    """The addresses of those that keep KV and that others find it at.

    By the controller, which all of it was told; by the coordinator, and each cache server that asks others.
    RequestFailedError if one does not answer.
    """
    if sharing == MULTIPROCESS:
        told = as_operator(lambda: controller().get("/instances"))
        listed = {str(one["ip"]) for one in json.loads(told)["instances"]}
        asked = {one for host in CACHES if host.address in listed for one in peers_of(host)}
        return listed & asked if len(listed) > 1 else listed
    told = as_operator(lambda: controller().get("/controller/workers"))
    synced = (one for one in json.loads(told)["workers"] if one["synced"])
    return {str(one["peer_init_url"]).partition(":")[0] for one in synced}


def difference(known: Known, answer: Completion) -> str | None:
    """Return what is wrong with an answer, or None."""
    limit = make_limit(DTYPE, ())
    apart = first_divergence(known.answer, answer.output)
    if apart is not None and not is_explained(apart, limit):
        return f"token {apart.position} is {apart.other} instead of {apart.honest}"
    off = distance(known.answer, answer.output)
    return f"off by {off:.3f} nats" if off > limit.value else None


def as_operator(act: Callable[[], T]) -> T:
    """Return what ``act`` returns on the operator's host."""

    def run() -> T:
        network.enter(OPERATOR)
        return act()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()
