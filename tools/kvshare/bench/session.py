"""The client's side of a benchmark: it sends the arms, reads the counters, and tells each repetition at once.

It runs in the client container, without Docker. A server that goes down ends the run with a sentence; what
was told before stands.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from kvshare.bench import load, rules
from kvshare.bench.observed import ArmRun, Closing, Line, Opening, PointEnd, Repetition
from kvshare.bench.spec import COLD, LOCAL_LMCACHE, NEEDS_COLD, NODE_OF, PEER, RECOMPUTE, BenchSpec, Point
from kvshare.config.keys import Keys
from kvshare.errors import KvshareError
from kvshare.servers.completion import VLLM_ONLY, Ask
from kvshare.servers.http import RequestFailedError
from kvshare.servers.prompts import Prompt, draw_prompt, require_prompt_tokens, reusable
from kvshare.servers.readings import Reading, ServerProbe
from kvshare.servers.server import ServerClient
from kvshare.servers.sharing import await_export, read_settled, servers_of, sharing_of

WARM_UP_TOKENS = 2  # output tokens of the first pull, which counts nowhere
ADMISSION_DEADLINE_S = 30.0
Emit = Callable[[Line], None]
Narrate = Callable[[str], None]
Readings = dict[str, Reading | None]  # by node


class StoppedError(Exception):
    """The run cannot go on; the message is one sentence."""


def run(spec: BenchSpec, keys: Keys, emit: Emit, narrate: Narrate) -> None:
    """Run the benchmark and emit every line as soon as it is known; KvshareError for what cannot work."""
    go_through(_Session(spec, keys, emit, narrate), spec, emit)


class Measuring(Protocol):
    """What a benchmark is on the client's side."""

    def open(self) -> None:
        """Look at the servers, and refuse what cannot work."""

    def measure(self, number: int, point: Point) -> None:
        """Repeat a point."""


def go_through(session: Measuring, spec: BenchSpec, emit: Emit) -> None:
    """Measure every point, and tell why the end came early."""
    started = time.monotonic()
    stopped = None
    try:
        session.open()
        for number, point in enumerate(spec.points):
            session.measure(number, point)
    except StoppedError as sentence:
        stopped = str(sentence)
    emit(Line(closing=Closing(time.monotonic() - started, stopped)))


class _Session:
    def __init__(self, spec: BenchSpec, keys: Keys, emit: Emit, narrate: Narrate) -> None:
        self.spec, self.api_key, self.emit, self.narrate = spec, keys.api, emit, narrate
        needed = {NODE_OF[arm] for arm in self.arms}
        self.servers = {node: server for node, server in servers_of(spec, keys).items() if node in needed}
        self.sharing = sharing_of(spec, spec.chunk_size, keys)
        self.model = ""
        self.draw = random.Random(spec.seed)
        self.serial = 0

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms to run; the cold one too where another reuses what it computes."""
        needs = COLD not in self.spec.arms and any(arm in NEEDS_COLD for arm in self.spec.arms)
        return (COLD, *self.spec.arms) if needs else self.spec.arms

    # --- the run ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Look at the servers, refuse what cannot work, and make the first pull of the pair."""
        self.model, longest = require_fit(self.servers, self.spec)
        self.emit(Line(opening=Opening(self.model, longest, self.spec.points, self._warm_up())))

    def _warm_up(self) -> ArmRun | None:
        """Send a request of each kind that does not count; return the first pull, if there is one."""
        tokens = min(point.prompt_tokens for point in self.spec.points)
        point = Point(tokens, WARM_UP_TOKENS)
        prompts = self._prompts(point)
        if RECOMPUTE in self.arms:
            self._send(RECOMPUTE, point, self._prompts(point))
        if COLD not in self.arms:
            return None
        before, mark = read_settled(self.servers), self.sharing.mark()
        self._send(COLD, point, prompts)
        if PEER not in self.arms:
            return None
        self.sharing.await_admission(prompts, mark, ADMISSION_DEADLINE_S)
        pull = self._send(PEER, point, prompts)
        if self.spec.declined(point):
            return None
        if _moved(pull):
            self._await_export(before, [pull])  # or it would be counted as the first point's
        self.narrate(f"first pull of the pair, not counted: {_ttft(pull)}")
        return pull

    def measure(self, number: int, point: Point) -> None:
        """Repeat a point."""
        self.narrate(f"{point.label}, {point.requests} requests of each arm")
        before = self._read_all()
        done = repeat(self.spec, self.emit, lambda attempt: self._repeat(number, attempt, point))
        pulled = [run for r in done for run in r.arms if run.arm == PEER and _moved(run)]
        self.emit(Line(point_end=self._point_end(number, before, pulled)))

    def _repeat(self, number: int, attempt: int, point: Point) -> Repetition:
        shared = point.shared_tokens(self.spec.chunk_size)
        expected = {COLD: 0, RECOMPUTE: 0, PEER: 0 if self.spec.declined(point) else shared}
        prompts = self._prompts(point)
        runs: list[ArmRun] = []
        admission = None
        for arm in order(self.arms, attempt):
            before = self.sharing.mark() if arm == COLD else None
            run = self._send(arm, point, self._prompts_of(arm, prompts, point))
            runs.append(replace(run, fault=rules.fault(run, expected.get(arm, shared))))
            self.narrate(f"repetition {attempt + 1}, {arm}: {_ttft(run)}{_why(runs[-1])}")
            self._require_servers(runs[-1])
            if before is not None and PEER in self.arms and run.wall_s:
                admission = self.sharing.await_admission(prompts, before, ADMISSION_DEADLINE_S).seconds
        return Repetition(number, attempt, tuple(runs), admission, rules.violation(runs, shared))

    def _prompts(self, point: Point) -> tuple[Prompt, ...]:
        """Return fresh prompts of random token ids in [3, vocab), one for each request of an arm."""
        return tuple(self._tokens(point.prompt_tokens) for _ in range(point.requests))

    def _tokens(self, count: int) -> Prompt:
        return draw_prompt(self.draw, count, self.spec.vocab)

    def _prompts_of(self, arm: str, prompts: Sequence[Prompt], point: Point) -> tuple[Prompt, ...]:
        """Return what an arm sends: the cold prompts, their shared part and fresh tokens, or fresh ones."""
        if arm == COLD:
            return tuple(prompts)
        shared = point.shared_tokens(self.spec.chunk_size) if arm in NEEDS_COLD else 0
        if arm in NEEDS_COLD and shared == reusable(point.prompt_tokens, self.spec.chunk_size):
            return tuple(prompts)
        return tuple(p[:shared] + self._tokens(len(p) - shared) for p in prompts)

    def _send(self, arm: str, point: Point, prompts: Sequence[Prompt]) -> ArmRun:
        node = NODE_OF[arm]
        self.serial += 1
        # A salt that begins so is in vLLM's keys and not in LMCache's (patch identity).
        salt = f"{VLLM_ONLY}{self.spec.seed}-{self.serial}" if arm == LOCAL_LMCACHE else None
        asks = [
            Ask(f"kvbench-{self.spec.seed}-{self.serial}-{arm}-{i}", prompt, point.output_tokens, salt)
            for i, prompt in enumerate(prompts)
        ]
        due = None
        if point.rate is not None:
            due = load.arrivals(len(asks), point.rate, self.draw.randrange(2**31))
        before = self.servers[node].read()
        done = load.send(asks, self.servers[node].http.base, self.model, self.api_key, point.concurrency, due)
        sent = sum(r.prompt_tokens for r in done.requests if r.error is None)
        answered = sum(r.error is None for r in done.requests)
        rise = self.servers[node].await_counted(before, sent, answered)
        sources, engine = (rise.sources, rise.engine) if rise else (None, None)
        return ArmRun(arm, done.requests, done.wall_s, sources, engine)

    def _require_servers(self, run: ArmRun) -> None:
        """StoppedError if the arm failed because its server is gone."""
        if run.fault is None or all(request.error is None for request in run.requests):
            return
        require_up(NODE_OF[run.arm], self.servers[NODE_OF[run.arm]])

    # --- looking ------------------------------------------------------------------------------------------

    def _read_all(self) -> Readings:
        return {node: server.read() for node, server in self.servers.items()}

    def _point_end(self, number: int, before: Readings, pulled: Sequence[ArmRun]) -> PointEnd:
        """Return LMCache's counters over the point, once it has exported the transfers."""
        rises = self._await_export(before, pulled) if pulled else None
        if rises is None:
            return PointEnd(number)
        owner, decode = rises
        return PointEnd(number, owner.counters, decode.copies, decode.copy_seconds)

    def _await_export(self, before: Readings, pulled: Sequence[ArmRun]) -> tuple[Reading, Reading] | None:
        """Return how the servers' counters rose, once LMCache has exported what these arms pulled."""
        self.narrate("waiting for LMCache to export its counters")
        pulls = sum(len(run.requests) for run in pulled)
        return await_export(self.sharing, self.servers, before, pulls, sum(map(_moved, pulled)))


def require_fit(servers: Mapping[str, ServerClient], spec: BenchSpec) -> tuple[str, int | None]:
    """Return the model that all servers serve, and its longest request, waiting for them within the deadline.

    StoppedError if one cannot be measured, KvshareError if models differ or a point is too long for them.
    """
    cards = {node: _card(node, server, spec.wait_s) for node, server in servers.items()}
    models = {str(card.model) for card in cards.values()}
    if len(models) > 1:
        told = " and ".join(f"{node} serves {card.model}" for node, card in cards.items())
        raise KvshareError(f"{told}: there is no KV to share between different models.")
    longest = min((c.max_model_len for c in cards.values() if c.max_model_len is not None), default=None)
    for point in spec.points:
        require_prompt_tokens(point.prompt_tokens, spec.chunk_size, longest, point.output_tokens)
    return models.pop(), longest


def _card(node: str, server: ServerClient, wait_s: float) -> ServerProbe:
    card = server.await_healthy(wait_s)
    if not card.healthy:
        raise StoppedError(f"{node} cannot be measured: {card.error}")
    return card


def require_up(node: str, server: ServerClient) -> None:
    """StoppedError if a server is gone."""
    try:
        server.http.get("/health")
    except RequestFailedError as error:
        raise StoppedError(f"{node} went down during the run: {error}") from None


def repeat(spec: BenchSpec, emit: Emit, once: Callable[[int], Repetition]) -> list[Repetition]:
    """Repeat until enough repetitions count, or as many again were discarded; each is told at once."""
    done: list[Repetition] = []
    while len(done) < 2 * spec.repetitions and sum(r.discarded is None for r in done) < spec.repetitions:
        done.append(once(len(done)))
        emit(Line(repetition=done[-1]))
    return done


def order(arms: Sequence[str], repetition: int) -> tuple[str, ...]:
    """Return the arms in turn: cold before what reuses it, the rest turned round every other time."""
    first, rest = [COLD] if COLD in arms else [], [arm for arm in arms if arm not in (COLD, RECOMPUTE)]
    control = [RECOMPUTE] if RECOMPUTE in arms else []
    return (*first, *rest, *control) if repetition % 2 == 0 else (*control, *first, *reversed(rest))


def _moved(run: ArmRun) -> int:
    """Return the tokens that came from LMCache or a peer."""
    return run.sources.external_kv_transfer if run.sources else 0


def _ttft(run: ArmRun) -> str:
    times = sorted(request.ttft_ms for request in run.requests if request.ttft_ms is not None)
    return f"first token after {times[len(times) // 2]:.0f} ms" if times else "no answer"


def _why(run: ArmRun) -> str:
    return f", does not count: {run.fault}" if run.fault else ""
