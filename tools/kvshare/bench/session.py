"""The client's side of a benchmark: it sends the arms, reads the counters, and tells each repetition at once.

It runs in the client container, without Docker. A server that goes down ends the run with a sentence; what
was told before stands.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from kvshare.bench import load, rules
from kvshare.bench.observed import ArmRun, Closing, Line, Opening, PointEnd, Repetition
from kvshare.bench.spec import COLD, LOCAL_LMCACHE, NEEDS_COLD, NODE_OF, PEER, RECOMPUTE, BenchSpec, Point
from kvshare.errors import KvshareError
from kvshare.servers.completion import VLLM_ONLY, Ask
from kvshare.servers.controller import ControllerClient
from kvshare.servers.http import RequestFailedError
from kvshare.servers.prompts import Prompt, draw_prompt, require_prompt_tokens, reusable
from kvshare.servers.readings import Reading, ServerProbe
from kvshare.servers.server import ServerClient, await_export

WARM_UP_TOKENS = 2  # output tokens of the first pull, which counts nowhere
ADMISSION_DEADLINE_S = 30.0
Emit = Callable[[Line], None]
Narrate = Callable[[str], None]
Readings = dict[str, Reading | None]  # by node


class StoppedError(Exception):
    """The run cannot go on; the message is one sentence."""


def run(spec: BenchSpec, api_key: str | None, emit: Emit, narrate: Narrate) -> None:
    """Run the benchmark and emit every line as soon as it is known; KvshareError for what cannot work."""
    started = time.monotonic()
    session = _Session(spec, api_key, emit, narrate)
    stopped = None
    try:
        session.open()
        for number, point in enumerate(spec.points):
            session.measure(number, point)
    except StoppedError as sentence:
        stopped = str(sentence)
    emit(Line(closing=Closing(time.monotonic() - started, stopped)))


class _Session:
    def __init__(self, spec: BenchSpec, api_key: str | None, emit: Emit, narrate: Narrate) -> None:
        self.spec, self.api_key, self.emit, self.narrate = spec, api_key, emit, narrate
        urls = {"prefill": spec.prefill, "decode": spec.decode}
        needed = {NODE_OF[arm] for arm in self.arms}
        self.servers = {node: ServerClient(url, api_key) for node, url in urls.items() if node in needed}
        self.controller = ControllerClient(
            spec.controller, spec.prefill_instance, spec.chunk_size, spec.ranks
        )
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
        cards = {node: self._card(node) for node in self.servers}
        models = {str(card.model) for card in cards.values()}
        if len(models) > 1:
            raise KvshareError(
                f"prefill serves {cards['prefill'].model} and decode {cards['decode'].model}: "
                "there is no KV to share between different models."
            )
        self.model = models.pop()
        lengths = [c.max_model_len for c in cards.values() if c.max_model_len is not None]
        longest = min(lengths, default=None)
        for point in self.spec.points:
            require_prompt_tokens(point.prompt_tokens, self.spec.chunk_size, longest, point.output_tokens)
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
        before, mark = self._read_all(), self.controller.mark()
        self._send(COLD, point, prompts)
        if PEER not in self.arms:
            return None
        self.controller.await_admission(prompts, mark, ADMISSION_DEADLINE_S)
        pull = self._send(PEER, point, prompts)
        if self.spec.declined(point):
            return None
        if _moved(pull):
            self._await_export(before, [pull])  # or it would be counted as the first point's
        self.narrate(f"first pull of the pair, not counted: {_ttft(pull)}")
        return pull

    def measure(self, number: int, point: Point) -> None:
        """Repeat a point until enough repetitions count, or as many again were discarded."""
        self.narrate(f"{point.label}, {point.requests} requests of each arm")
        before = self._read_all()
        counted = 0
        pulled: list[ArmRun] = []
        for attempt in range(2 * self.spec.repetitions):
            repetition = self._repeat(number, attempt, point)
            self.emit(Line(repetition=repetition))
            counted += repetition.discarded is None
            pulled += [run for run in repetition.arms if run.arm == PEER and _moved(run)]
            if counted == self.spec.repetitions:
                break
        self.emit(Line(point_end=self._point_end(number, before, pulled)))

    def _repeat(self, number: int, attempt: int, point: Point) -> Repetition:
        shared = point.shared_tokens(self.spec.chunk_size)
        expected = {COLD: 0, RECOMPUTE: 0, PEER: 0 if self.spec.declined(point) else shared}
        prompts = self._prompts(point)
        runs: list[ArmRun] = []
        admission = None
        for arm in order(self.arms, attempt):
            before = self.controller.mark() if arm == COLD else None
            run = self._send(arm, point, self._prompts_of(arm, prompts, point))
            runs.append(replace(run, fault=rules.fault(run, expected.get(arm, shared))))
            self.narrate(f"repetition {attempt + 1}, {arm}: {_ttft(run)}{_why(runs[-1])}")
            self._require_servers(runs[-1])
            if before is not None and PEER in self.arms and run.wall_s:
                admission = self.controller.await_admission(prompts, before, ADMISSION_DEADLINE_S).seconds
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
        try:
            self.servers[NODE_OF[run.arm]].http.get("/health")
        except RequestFailedError as error:
            raise StoppedError(f"{NODE_OF[run.arm]} went down during the run: {error}") from None

    # --- looking ------------------------------------------------------------------------------------------

    def _card(self, node: str) -> ServerProbe:
        """Return what a server says of its model, waiting for it within the deadline."""
        card = self.servers[node].await_healthy(self.spec.wait_s)
        if not card.healthy:
            raise StoppedError(f"{node} cannot be measured: {card.error}")
        return card

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
        return await_export(self.servers, before, pulls, sum(map(_moved, pulled)), self.spec.ranks)


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
