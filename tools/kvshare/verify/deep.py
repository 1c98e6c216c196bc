"""The client's side of `verify --deep`, after the proof: edges, salts, adapters, crowds, hang-ups.

Like the legs it judges nothing. Every prompt is new to both servers: it is known what decode can have.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from random import Random

from kvshare.servers.completion import VLLM_ONLY, Ask
from kvshare.servers.http import READ_TIMEOUT_S, TIMED_OUT, Http
from kvshare.servers.prompts import TAIL, Prompt, draw_prompt, quoting, reusable
from kvshare.servers.readings import Held, Memory, Reading, ServerProbe, Sources
from kvshare.servers.server import ServerClient
from kvshare.servers.sharing import Sharing
from kvshare.servers.wait import poll
from kvshare.verify.evidence import (
    ADAPTERS,
    ANEW,
    AT_ONCE,
    EDGES,
    HUNG_UP,
    PREEMPTED,
    SALTS,
    Deep,
    HangUps,
    Leg,
    Pressure,
    Spec,
    Trial,
)
from kvshare.verify.ledger import holds_more
from kvshare.verify.sending import answered, late

SEEDS_AWAY = 500_000  # from the seed of the proof's prompts
ANSWER_TOKENS = 8
LENGTHS = 3  # of whole chunks, at whose edges prompts end
MOST_ADAPTERS = 2
CROWD, CROWD_TOKENS = 8, 32_768  # prompts at most, and their tokens, all of which prefill has to hold
FEWEST_PRESSERS, MOST_PRESSERS = 2, 32  # requests at once that are to fill decode's memory
WAITING = 2  # more of them than fit
PRESSED_TOKENS = 64  # that each of them generates
PRESSED_S = 120.0  # may pass between two tokens of a preempted answer
SOONEST_S = 0.02  # a pull is taken to last at least
MOMENTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of a pull's time to first token, at which clients hang up
ADMISSION_S, AFTER_A_MISS_S = 15.0, 1.0
QUIET_S = 30.0  # by when nothing of a request is held whose client has gone


@dataclass(frozen=True)
class Request:
    """What to ask of a server; without a model the one that it serves."""

    prompt: Prompt
    salt: str | None = None
    model: str | None = None
    max_tokens: int = ANSWER_TOKENS


class DeepRun:
    """One run's servers, and the trials so far."""

    def __init__(
        self,
        spec: Spec,
        api_key: str | None,
        servers: Mapping[str, ServerClient],
        probes: Mapping[str, ServerProbe],
        sharing: Sharing,
        narrate: Callable[[str], None],
    ) -> None:
        self.spec, self.api_key, self.servers, self.probes = spec, api_key, servers, probes
        self.sharing, self.narrate = sharing, narrate
        self.model = probes["decode"].model or ""
        self.until = time.monotonic() + spec.deadline_s
        self.trials: list[Trial] = []
        self._admission_s = ADMISSION_S
        self._draw = Random(spec.seed + SEEDS_AWAY)
        self._numbers: Iterator[int] = count()

    def run(self, pull_s: float) -> Deep:
        """Try everything; ``pull_s`` is how long a pull takes to its first token."""
        adapters = self._adapters_of_both()
        self._try_salts()
        self._try_edges()
        self._try_adapters(adapters)
        self._try_at_once()
        pressure, hang_ups = self._press(), self._hang_up(max(pull_s, SOONEST_S))
        return Deep(adapters, tuple(self.trials), pressure, hang_ups)

    # --- what is tried --------------------------------------------------------------------------------------

    def _try_salts(self) -> None:
        request = self._short(salt=self._new_salt())
        held = self._hold([request])
        honest = (self._anew(request),)
        for what, salt in (("KV of one salt for another", self._new_salt()), ("KV of a salt for none", None)):
            self._try(SALTS, what, [replace(request, salt=salt)], held, 0, honest)
        self._try(SALTS, "KV of a salt for itself", [request], held, self._due([request]), honest)

    def _try_edges(self) -> None:
        """A chunk more or less: prompts that end a token before a whole chunk, with it, and after it."""
        size, least = self.spec.chunk_size, self.spec.least_chunks
        for chunks in range(least, least + LENGTHS):
            lengths = [chunks * size + beyond for beyond in (-1, 0, 1)]
            if not self._has_room(lengths[-1] + ANSWER_TOKENS):
                return
            requests = [Request(self._prompt(length)) for length in lengths]
            held = self._hold(requests)
            for length, request in zip(lengths, requests, strict=True):
                self._try(EDGES, f"a prompt of {length} tokens", [request], held, self._due([request]))

    def _try_adapters(self, adapters: Sequence[str]) -> None:
        if not adapters:
            return
        models = (self.model, *adapters[:MOST_ADAPTERS])
        for owner in models:
            request = self._short(model=owner)
            held = self._hold([request])
            for model in models:
                what, due = f"KV of {owner} for {model}", self._due([request]) if model == owner else 0
                self._try(ADAPTERS, what, [replace(request, model=model)], held, due)

    def _try_at_once(self) -> None:
        first = self._short()
        number = max(2, min(CROWD, CROWD_TOKENS // len(first.prompt)))
        requests = [first, *(self._short() for _ in range(number - 1))]
        held = self._hold(requests)
        self._try(AT_ONCE, f"{number} prompts at once", requests, held, self._due(requests))

    def _press(self) -> Pressure | None:
        """Fill decode's memory with prompts that it pulls, until requests have to leave it and come again.

        Two prompts, each many times: a salt that LMCache ignores gives every request memory of its own.
        """
        decode = self.servers["decode"]
        memory = decode.memory()
        if memory is None:
            return None
        longest = self.probes["decode"].max_model_len
        tokens, number = pressing(memory, self.spec, longest)
        if not number:
            return Pressure(memory.tokens, 0, tokens, 0)
        two = [Request(self._prompt(tokens), max_tokens=PRESSED_TOKENS) for _ in range(2)]
        held = self._hold([replace(request, max_tokens=ANSWER_TOKENS) for request in two])
        honest = self._send_at_once("alone", two)
        requests = [replace(two[n % 2], salt=self._salt_of_vllm()) for n in range(number)]
        of_each = tuple(honest[n % 2] for n in range(number))
        self._try(PREEMPTED, f"{number} prompts beyond memory", requests, held, None, of_each)
        now = decode.memory()
        return Pressure(memory.tokens, number, tokens, now.preemptions - memory.preemptions if now else 0)

    def _hang_up(self, pull_s: float) -> HangUps:
        """Hang up at different moments of a pull; then ask for the same once more."""
        request = Request(self._prompt(self.spec.prompt_tokens))
        held = self._hold([request])
        since, before = self._readings(), self._holds()
        cut = 0
        for moment in MOMENTS:
            leg = self._send("cut", "decode", replace(request, salt=self._salt_of_vllm()), moment * pull_s)
            cut += leg.error is not None and leg.error.endswith(TIMED_OUT)
        after = poll(self._holds, lambda now: not holds_more(before, now), QUIET_S)
        restarted = tuple(node for node, now in self._readings().items() if _is_less(now, since[node]))
        again = replace(request, salt=self._salt_of_vllm())
        self._try(HUNG_UP, "the same prompt afterwards", [again], held, self._due([again]))
        return HangUps(len(MOMENTS), cut, before, after, restarted)

    # --- how ------------------------------------------------------------------------------------------------

    def _try(
        self,
        kind: str,
        what: str,
        requests: Sequence[Request],
        held: tuple[Leg, ...],
        due: int | None,
        honest: tuple[Leg, ...] | None = None,
    ) -> None:
        decode = self.servers["decode"]
        since = decode.read()
        asked = self._send_at_once("asked", requests)
        tokens = [leg.tokens for leg in asked if leg.error is None]
        rise = decode.await_counted(since, sum(tokens), len(tokens))
        if honest is None:
            honest = tuple(self._anew(request) for request in requests)
        sources = rise.sources if rise else None
        self.trials.append(Trial(kind, what, due, held, asked, honest, sources))
        self.narrate(f"{kind}, {what}: {sources.external_kv_transfer if sources else '?'} from the peer")

    def _hold(self, requests: Sequence[Request]) -> tuple[Leg, ...]:
        """Have prefill compute prompts, and wait until the controller knows of it."""
        before = self.sharing.mark()
        legs = tuple(self._send("held", "prefill", request) for request in requests)
        prompts = [request.prompt for request in requests]
        admission = self.sharing.await_admission(prompts, before, self._admission_s)
        self._admission_s = ADMISSION_S if admission.how else AFTER_A_MISS_S
        return legs

    def _anew(self, request: Request) -> Leg:
        """Have decode compute an answer itself: under a salt of its own nobody has KV for it."""
        decode = self.servers["decode"]
        since = decode.read()
        leg = self._send(ANEW, "decode", replace(request, salt=self._new_salt()))
        rise = None if leg.error else decode.await_counted(since, leg.tokens)
        return replace(leg, sources=rise.sources if rise else None)

    def _send_at_once(self, name: str, requests: Sequence[Request]) -> tuple[Leg, ...]:
        with ThreadPoolExecutor(len(requests)) as threads:
            sent = [threads.submit(self._send, name, "decode", one, PRESSED_S) for one in requests]
            return tuple(one.result() for one in sent)

    def _send(self, name: str, node: str, request: Request, timeout: float = READ_TIMEOUT_S) -> Leg:
        number = next(self._numbers)
        leg = Leg(number, name, node, f"kvshare-{self.spec.seed}-deep-{number}", len(request.prompt))
        if time.monotonic() > self.until:
            return late(leg, self.spec)
        http = Http(self.servers[node].http.base, self.api_key)
        ask = Ask(leg.request_id, request.prompt, request.max_tokens, request.salt, logprobs=True)
        try:
            return answered(leg, http, request.model or self.model, ask, timeout)
        finally:
            http.close()

    def _adapters_of_both(self) -> tuple[str, ...]:
        return tuple(a for a in self.probes["decode"].adapters if a in self.probes["prefill"].adapters)

    def _due(self, requests: Sequence[Request]) -> int:
        """Return how many tokens of prompts that prefill holds decode must take from it."""
        return sum(pulled(len(request.prompt), self.spec) for request in requests)

    def _short(self, salt: str | None = None, model: str | None = None) -> Request:
        """Return a request for a prompt of as few chunks as decode pulls, and a tail."""
        return Request(self._prompt(self.spec.least_chunks * self.spec.chunk_size + TAIL), salt, model)

    def _prompt(self, tokens: int) -> Prompt:
        """Return a new prompt; its tail quotes the last whole chunk before it."""
        prompt = draw_prompt(self._draw, tokens, self.spec.vocab)
        chunk = max(0, (tokens - TAIL) // self.spec.chunk_size - 1)
        return quoting(prompt, chunk, self.spec.chunk_size, TAIL)

    def _new_salt(self) -> str:
        return f"kvshare-{self.spec.seed}-{next(self._numbers)}"

    def _salt_of_vllm(self) -> str:
        return f"{VLLM_ONLY}{self._new_salt()}"

    def _has_room(self, tokens: int) -> bool:
        longest = self.probes["decode"].max_model_len
        return longest is None or tokens <= longest

    def _readings(self) -> dict[str, Sources | None]:
        readings: dict[str, Reading | None] = {node: server.read() for node, server in self.servers.items()}
        return {node: reading.sources if reading else None for node, reading in readings.items()}

    def _holds(self) -> dict[str, Held | None]:
        return {node: server.held() for node, server in self.servers.items()}


def pulled(tokens: int, spec: Spec) -> int:
    """Return how many tokens of a prompt that prefill holds decode takes from it; its last it computes."""
    whole = reusable(tokens, spec.chunk_size)
    return min(whole, tokens - 1) if whole >= spec.least_chunks * spec.chunk_size else 0


def pressing(memory: Memory, spec: Spec, longest: int | None) -> tuple[int, int]:
    """Return how long prompts must be, and how many at once, to outgrow the memory; none if too many would.

    Each ends half a block before another one, so that as many as just fit need more while they generate.
    """
    size, before = memory.block_size, min(PRESSED_TOKENS, memory.block_size) // 2
    usable = memory.blocks - 1  # vLLM keeps one for itself
    chunks = spec.least_chunks
    while True:
        blocks = math.ceil((chunks * spec.chunk_size + before) / size)
        tokens = blocks * size - before
        if longest is not None and tokens + PRESSED_TOKENS > longest:
            return tokens, 0
        fit, left = divmod(usable, blocks)
        if fit < FEWEST_PRESSERS:
            return tokens, 0
        grows = math.ceil((tokens + PRESSED_TOKENS) / size) - blocks
        if fit + WAITING <= MOST_PRESSERS and fit * grows > left:
            return tokens, fit + WAITING
        chunks += 1


def _is_less(now: Sources | None, before: Sources | None) -> bool:
    """Return whether a server has counted less than it had: it was started anew, or is gone."""
    return before is not None and (now is None or now.total < before.total)
