"""The client's side of a benchmark: it sends the arms, reads the counters, and tells each repetition at once.

It runs in the client container, without Docker. A server that goes down ends the run with a sentence; what
was told before stands.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvshare.bench import load, rules
from kvshare.bench.observed import ArmRun, Closing, Line, Opening, PointEnd, Repetition
from kvshare.bench.spec import COLD, LOCAL_LMCACHE, NEEDS_COLD, NODE_OF, PEER, RECOMPUTE, BenchSpec, Point
from kvshare.errors import KvshareError
from kvshare.servers import metrics
from kvshare.servers.openai import Http, RequestFailedError
from kvshare.servers.prompts import FIRST_TOKEN_ID, require_prompt_tokens, reusable
from kvshare.servers.readings import Counters, EngineTimes, Sources
from kvshare.servers.wire import Ask
from kvshare.verify import legs
from kvshare.verify.legs import Narrate, poll

WARM_UP_TOKENS = 2  # output tokens of the first pull, which counts nowhere
ADMISSION_DEADLINE_S = 30.0
Emit = Callable[[Line], None]
Prompt = tuple[int, ...]


class StoppedError(Exception):
    """The run cannot go on; the message is one sentence."""


@dataclass(frozen=True)
class _Card:
    """What a server says of its model."""

    model: str
    max_model_len: int | None


@dataclass(frozen=True)
class _Seen:
    """A server's counters at one moment."""

    sources: Sources | None
    engine: EngineTimes
    counters: Counters
    copies: float
    copy_seconds: float


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
        self.http = {"prefill": Http(spec.prefill, api_key), "decode": Http(spec.decode, api_key)}
        self.controller = Http(spec.controller)
        self.nodes = tuple(n for n in self.http if any(NODE_OF[arm] == n for arm in self.arms))
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
        cards = {node: self._card(node) for node in self.nodes}
        models = {card.model for card in cards.values()}
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
        before, keys = self._see_all(), self._owner_keys()
        self._send(COLD, point, prompts)
        if PEER not in self.arms:
            return None
        self._await_admission(prompts, keys)
        pull = self._send(PEER, point, prompts)
        if self.spec.declined(point):
            return None
        if pull.sources and pull.sources.external_kv_transfer:
            self._await_export(before, 1)  # or it would be counted as the first point's
        self.narrate(f"first pull of the pair, not counted: {_ttft(pull)}")
        return pull

    def measure(self, number: int, point: Point) -> None:
        """Repeat a point until enough repetitions count, or as many again were discarded."""
        self.narrate(f"{point.label}, {point.requests} requests of each arm")
        before = self._see_all()
        counted = pulls = 0
        for attempt in range(2 * self.spec.repetitions):
            repetition = self._repeat(number, attempt, point)
            self.emit(Line(repetition=repetition))
            counted += repetition.discarded is None
            pulls += sum(
                len(run.requests)
                for run in repetition.arms
                if run.arm == PEER and run.sources and run.sources.external_kv_transfer
            )
            if counted == self.spec.repetitions:
                break
        self.emit(Line(point_end=self._point_end(number, before, pulls)))

    def _repeat(self, number: int, attempt: int, point: Point) -> Repetition:
        shared = point.shared_tokens(self.spec.chunk_size)
        expected = {COLD: 0, RECOMPUTE: 0, PEER: 0 if self.spec.declined(point) else shared}
        prompts = self._prompts(point)
        runs: list[ArmRun] = []
        admission = None
        for arm in order(self.arms, attempt):
            keys = self._owner_keys() if arm == COLD else 0
            run = self._send(arm, point, self._prompts_of(arm, prompts, point))
            runs.append(_judged(run, expected.get(arm, shared)))
            self.narrate(f"repetition {attempt + 1}, {arm}: {_ttft(run)}{_why(runs[-1])}")
            self._require_servers(runs[-1])
            if arm == COLD and PEER in self.arms and run.wall_s:
                admission = self._await_admission(prompts, keys)
        return Repetition(number, attempt, tuple(runs), admission, rules.violation(runs, shared))

    def _prompts(self, point: Point) -> tuple[Prompt, ...]:
        """Return fresh prompts of random token ids in [3, vocab), one for each request of an arm."""
        return tuple(self._tokens(point.prompt_tokens) for _ in range(point.requests))

    def _tokens(self, count: int) -> Prompt:
        return tuple(self.draw.randrange(FIRST_TOKEN_ID, self.spec.vocab) for _ in range(count))

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
        # vLLM's cache keys hold the salt and LMCache's do not, so a new one leaves only LMCache to hit.
        salt = f"kvshare-{self.spec.seed}-{self.serial}" if arm == LOCAL_LMCACHE else None
        asks = [
            Ask(f"kvbench-{self.spec.seed}-{self.serial}-{arm}-{i}", prompt, point.output_tokens, salt)
            for i, prompt in enumerate(prompts)
        ]
        due = None
        if point.rate is not None:
            due = load.arrivals(len(asks), point.rate, self.draw.randrange(2**31))
        before = self._see(node)
        done = load.send(asks, self.http[node].base, self.model, self.api_key, point.concurrency, due)
        sent = sum(r.prompt_tokens for r in done.requests if r.error is None)
        answered = sum(r.error is None for r in done.requests)
        sources, engine = self._risen(node, before, sent, answered)
        return ArmRun(arm, done.requests, done.wall_s, sources, engine)

    def _require_servers(self, run: ArmRun) -> None:
        """StoppedError if the arm failed because its server is gone."""
        if run.fault is None or all(request.error is None for request in run.requests):
            return
        try:
            self.http[NODE_OF[run.arm]].get("/health")
        except RequestFailedError as error:
            raise StoppedError(f"{NODE_OF[run.arm]} went down during the run: {error}") from None

    # --- looking ------------------------------------------------------------------------------------------

    def _card(self, node: str) -> _Card:
        """Return what a server says of its model, waiting for it within the deadline."""
        answer = poll(lambda: self._card_now(node), lambda found: isinstance(found, _Card), self.spec.wait_s)
        if isinstance(answer, str):
            raise StoppedError(f"{node} cannot be measured: {answer}")
        return answer

    def _card_now(self, node: str) -> _Card | str:
        try:
            self.http[node].get("/health")
            listed = self.http[node].get("/v1/models").json()["data"][0]
            return _Card(str(listed["id"]), listed.get("max_model_len"))
        except RequestFailedError as error:
            return str(error)
        except (ValueError, LookupError):
            return f"{self.http[node].base}/v1/models lists no model"

    def _see_all(self) -> dict[str, _Seen | None]:
        return {node: self._see(node) for node in self.nodes}

    def _see(self, node: str) -> _Seen | None:
        try:
            samples = metrics.parse(self.http[node].get("/metrics", timeout=10.0).text)
        except (RequestFailedError, ValueError):
            return None
        return _Seen(
            metrics.sources(samples),
            engine_times(samples),
            metrics.counters(samples),
            metrics.total(samples, "lmcache:time_to_retrieve_count") or 0.0,
            metrics.total(samples, "lmcache:time_to_retrieve_sum") or 0.0,
        )

    def _risen(
        self, node: str, before: _Seen | None, tokens: int, requests: int
    ) -> tuple[Sources | None, EngineTimes | None]:
        """Return how the server's counters rose, once it has counted this arm's requests."""
        if before is None or before.sources is None:
            return None, None
        earlier = before.sources
        now = poll(
            lambda: self._see(node),
            lambda seen: (
                seen is None
                or seen.sources is None
                or (
                    (seen.sources - earlier).total >= tokens
                    and seen.engine.requests - before.engine.requests >= requests
                )
            ),
            legs.LEDGER_DEADLINE_S,
        )
        if now is None or now.sources is None:
            return None, None
        return now.sources - earlier, now.engine - before.engine

    def _point_end(self, number: int, before: dict[str, _Seen | None], pulls: int) -> PointEnd:
        """Return LMCache's counters over the point, once it has exported the transfers."""
        owner, decode = before.get("prefill"), before.get("decode")
        now = self._await_export(before, pulls) if pulls else {}
        owner_now, decode_now = now.get("prefill"), now.get("decode")
        if owner is None or decode is None or owner_now is None or decode_now is None:
            return PointEnd(number)
        return PointEnd(
            number,
            _counters_rise(owner.counters, owner_now.counters),
            decode_now.copies - decode.copies,
            decode_now.copy_seconds - decode.copy_seconds,
        )

    def _await_export(self, before: dict[str, _Seen | None], pulls: int) -> dict[str, _Seen | None]:
        """Return the servers' counters once LMCache, which exports every 2 s, has counted the pulls."""
        owner, decode = before.get("prefill"), before.get("decode")
        if owner is None or decode is None:
            return {}
        self.narrate("waiting for LMCache to export its counters")
        return poll(
            self._see_all,
            lambda seen: _exported(seen, owner, decode, pulls),
            legs.COUNTERS_DEADLINE_S,
        )

    # --- the controller -----------------------------------------------------------------------------------

    def _owner_keys(self) -> int:
        """Return the owner's number of keys; 0 if the controller does not say."""
        try:
            listed = self.controller.get("/controller/workers").json()["workers"]
            return sum(int(w["key_count"]) for w in listed if w["instance_id"] == self.spec.prefill_instance)
        except (RequestFailedError, ValueError, LookupError):
            return 0

    def _await_admission(self, prompts: Sequence[Prompt], keys_before: int) -> float:
        """Wait until the controller knows every chunk at the owner; return the seconds that it took."""
        start = time.monotonic()
        chunks = sum(len(prompt) // self.spec.chunk_size for prompt in prompts)
        poll(
            lambda: self._owner_keys() - keys_before >= chunks or self._all_found(prompts),
            bool,
            ADMISSION_DEADLINE_S,
        )
        return time.monotonic() - start

    def _all_found(self, prompts: Sequence[Prompt]) -> bool:
        """Whether the controller finds every prompt at the owner; a full cache keeps its key count flat.

        The controller's `/lookup` knows the default chunk size only.
        """
        return self.spec.chunk_size == 256 and all(
            self._found(prompt) >= reusable(len(prompt), self.spec.chunk_size) for prompt in prompts
        )

    def _found(self, prompt: Prompt) -> int:
        try:
            answer = self.controller.post("/lookup", {"tokens": list(prompt)}, timeout=5.0).json()
            return int(answer["layout_info"].get(self.spec.prefill_instance, ("", 0))[1])
        except (RequestFailedError, ValueError, LookupError):
            return 0


def order(arms: Sequence[str], repetition: int) -> tuple[str, ...]:
    """Return the arms in turn: cold before what reuses it, the rest turned round every other time."""
    first, rest = [COLD] if COLD in arms else [], [arm for arm in arms if arm not in (COLD, RECOMPUTE)]
    control = [RECOMPUTE] if RECOMPUTE in arms else []
    return (*first, *rest, *control) if repetition % 2 == 0 else (*control, *first, *reversed(rest))


def engine_times(samples: Sequence[metrics.Sample]) -> EngineTimes:
    """Return vLLM's own sums of request times since its start.

    Source: ``vllm/v1/metrics/stats.py`` of vLLM 0.32.0: queue = queued to first scheduled (a wait for remote
    KV included), prefill = first scheduled to first token, decode = first to last token.
    """

    def read(name: str) -> float:
        return metrics.total(samples, f"vllm:{name}") or 0.0

    return EngineTimes(
        requests=read("request_prefill_time_seconds_count"),
        ttft_s=read("time_to_first_token_seconds_sum"),
        queue_s=read("request_queue_time_seconds_sum"),
        prefill_s=read("request_prefill_time_seconds_sum"),
        decode_s=read("request_decode_time_seconds_sum"),
    )


def _judged(run: ArmRun, shared: int) -> ArmRun:
    return ArmRun(run.arm, run.requests, run.wall_s, run.sources, run.engine, rules.fault(run, shared))


def _exported(seen: dict[str, _Seen | None], owner: _Seen, decode: _Seen, pulls: int) -> bool:
    owner_now, decode_now = seen.get("prefill"), seen.get("decode")
    if owner_now is None or decode_now is None:
        return True
    return (
        owner_now.counters.transfers - owner.counters.transfers >= pulls
        and decode_now.copies - decode.copies >= pulls
    )


def _counters_rise(before: Counters, after: Counters) -> Counters:
    return Counters(
        hit_tokens=after.hit_tokens - before.hit_tokens,
        requested_tokens=after.requested_tokens - before.requested_tokens,
        transfers=after.transfers - before.transfers,
        transfer_seconds=after.transfer_seconds - before.transfer_seconds,
        transfer_speed_sum=after.transfer_speed_sum - before.transfer_speed_sum,
    )


def _ttft(run: ArmRun) -> str:
    times = sorted(request.ttft_ms for request in run.requests if request.ttft_ms is not None)
    return f"first token after {times[len(times) // 2]:.0f} ms" if times else "no answer"


def _why(run: ArmRun) -> str:
    return f", does not count: {run.fault}" if run.fault else ""
