"""The gateway against other ways to the same servers, from the client's side: each sends like loads.

A load is prompts of random tokens that have something in common, or nothing; every way of every repetition
has prompts of its own, so that no cache is warm. The other ways' KV is kept by vLLM alone: nothing is shared.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add

from kvshare.bench import load, rules
from kvshare.bench.observed import ArmRun, Line, Opening, PointEnd, Repetition
from kvshare.bench.session import (
    WARM_UP_TOKENS,
    Emit,
    Narrate,
    go_through,
    repeat,
    require_fit,
    require_up,
)
from kvshare.bench.spec import CONVERSATIONS, DOCUMENTS, GATEWAY, ONE_SERVER, TURNS, BenchSpec, Point
from kvshare.config.keys import Keys
from kvshare.servers import server
from kvshare.servers.completion import Ask
from kvshare.servers.prompts import Prompt, draw_prompt
from kvshare.servers.readings import Reading
from kvshare.servers.server import ServerClient
from kvshare.servers.wait import poll

Talks = Sequence[Sequence[Prompt]]


def run(spec: BenchSpec, keys: Keys, emit: Emit, narrate: Narrate) -> None:
    """Run the comparison and emit every line as soon as it is known; KvshareError for what cannot work."""
    go_through(_Ways(spec, keys.api, emit, narrate), spec, emit)


def talks(point: Point, spec: BenchSpec, draw: random.Random) -> Talks:
    """Return a load: of each client's prompts the next is sent once the one before is answered.

    - documents: each is asked about eight times, by a tail of its own, all of it in random order;
    - conversations: of eight turns, each an eighth longer; its answers are drawn too, not a server's;
    - unrelated: prompts that have nothing in common.
    """

    def fresh(tokens: int) -> Prompt:
        return draw_prompt(draw, tokens, spec.vocab)

    if point.load == CONVERSATIONS:
        whole = [fresh(point.prompt_tokens) for _ in range(max(1, point.requests // TURNS))]
        ends = [point.prompt_tokens * (turn + 1) // TURNS for turn in range(TURNS)]
        return [[prompt[:end] for end in ends] for prompt in whole]
    if point.load == DOCUMENTS:
        shared = point.shared_tokens(spec.chunk_size)
        documents = [fresh(shared) for _ in range(-(-point.requests // TURNS))]
        asked = [documents[n % len(documents)] for n in range(point.requests)]
        draw.shuffle(asked)
        return [[document + fresh(point.prompt_tokens - shared)] for document in asked]
    return [[fresh(point.prompt_tokens)] for _ in range(point.requests)]


class _Ways:
    def __init__(self, spec: BenchSpec, api_key: str | None, emit: Emit, narrate: Narrate) -> None:
        self.spec, self.api_key, self.emit, self.narrate = spec, api_key, emit, narrate
        self.servers = [ServerClient(url, api_key) for url in spec.servers]
        self.gateway = ServerClient(spec.gateway or "", api_key)
        self.model = ""
        self.draw = random.Random(spec.seed)
        self.serial = 0

    def open(self) -> None:
        """Look at the servers, refuse what cannot work, and send each way a prompt that does not count."""
        names = ["prefill", *(f"decode-{n}" for n, _ in enumerate(self.servers[1:], 1))]
        asked = dict(zip(names, self.servers, strict=True)) | {"the gateway": self.gateway}
        self.model, longest = require_fit(asked, self.spec)
        tokens = self.spec.points[0].prompt_tokens
        point = Point(tokens, WARM_UP_TOKENS, len(self.servers), requests=len(self.servers))
        for way in self.spec.arms:
            self._send(way, point)
        self.emit(Line(opening=Opening(self.model, longest, self.spec.points)))

    def measure(self, number: int, point: Point) -> None:
        """Repeat a load."""
        self.narrate(point.label)
        repeat(self.spec, self.emit, lambda attempt: self._repeat(number, attempt, point))
        self.emit(Line(point_end=PointEnd(number)))

    def _repeat(self, number: int, attempt: int, point: Point) -> Repetition:
        runs: list[ArmRun] = []
        for way in self.spec.arms if attempt % 2 == 0 else reversed(self.spec.arms):
            run = self._send(way, point)
            runs.append(replace(run, fault=rules.way_fault(run)))
            why = f", does not count: {runs[-1].fault}" if runs[-1].fault else ""
            self.narrate(f"repetition {attempt + 1}, {way}: {run.wall_s:.1f} s{why}")
            if any(request.error is not None for request in run.requests):
                self._require_servers()
        return Repetition(number, attempt, tuple(runs), discarded=rules.way_violation(runs, point.load))

    def _send(self, way: str, point: Point) -> ArmRun:
        self.serial += 1
        asks = [
            [
                Ask(f"kvbench-{self.spec.seed}-{self.serial}-{way}-{n}-{turn}", prompt, point.output_tokens,
                    shared=way == GATEWAY)
                for turn, prompt in enumerate(talk)
            ]
            for n, talk in enumerate(talks(point, self.spec, self.draw))
        ]  # fmt: skip
        before = [one.read() for one in self.servers]
        done = load.send_talks(asks, self._bases(way), self.model, self.api_key, point.concurrency)
        answered = [request for request in done.requests if request.error is None]
        rise = self._await_counted(before, sum(r.prompt_tokens for r in answered), len(answered))
        return ArmRun(way, done.requests, done.wall_s, rise.sources if rise else None)

    def _bases(self, way: str) -> Sequence[str]:
        if way == GATEWAY:
            return (self.gateway.http.base,)
        return self.spec.servers[:1] if way == ONE_SERVER else self.spec.servers

    def _await_counted(self, before: Sequence[Reading | None], tokens: int, requests: int) -> Reading | None:
        """Return how all servers' counters rose, once they have counted so much; None where one is silent."""

        def rise() -> Reading | None:
            each = [
                now - then
                for one, then in zip(self.servers, before, strict=True)
                if then is not None and (now := one.read()) is not None
            ]
            return reduce(add, each) if len(each) == len(self.servers) else None

        def is_enough(found: Reading | None) -> bool:
            if found is None or found.sources is None:
                return True
            return found.sources.total >= tokens and found.engine.requests >= requests

        return poll(rise, is_enough, server.COUNTED_DEADLINE_S)

    def _require_servers(self) -> None:
        """StoppedError if the gateway or a server behind it is gone."""
        for one in (*self.servers, self.gateway):
            require_up(one.http.base, one)
