"""A verification small enough to run for ever beside real traffic: one fresh prompt, one answer compared.

Other requests are counted as this one is, so it says no less than `kvshare verify` where something is wrong,
and less where all is well: that decode took *at least* the prompt's chunks from a cache that is not its own.
"""

import math
import random
from dataclasses import dataclass, field
from enum import StrEnum

from kvshare.config.keys import Keys
from kvshare.config.threshold import PULL_ALWAYS, Threshold
from kvshare.servers.completion import VLLM_ONLY, Ask, Completion, complete
from kvshare.servers.http import RequestFailedError
from kvshare.servers.prompts import (
    DEFAULT_CHUNK_SIZE,
    TAIL,
    Prompt,
    make_prompts,
    quoting,
    with_other_chunk,
)
from kvshare.servers.readings import Reading
from kvshare.servers.server import COUNTED_DEADLINE_S, ServerClient
from kvshare.servers.sharing import EXPORT_DEADLINE_S, servers_of, sharing_of
from kvshare.servers.wait import poll
from kvshare.verify.evidence import Spec
from kvshare.verify.tolerance import SENSITIVITY, distance, make_limit

CHUNKS = 2
ANSWER_TOKENS = 16
ADMISSION_DEADLINE_S = 15.0


class State(StrEnum):
    """How a canary ended."""

    PROVEN = "proven"
    BLIND = "blind"  # as proven, but another chunk's KV would have given much the same answer
    UNANSWERED = "unanswered"
    COMPUTED = "computed"  # decode took less than the prompt's chunks from a cache that is not its own
    UNSENT = "unsent"  # it says that it took them, and prefill counts no transfer
    WRONG = "wrong"  # it answers otherwise than prefill


@dataclass(frozen=True)
class Pair:
    """Where prefill, one decode server and the controller answer.

    Attributes:
        owner: prefill's LMCache instance.
        dtype: of the KV, as vLLM names it.
        caches: where LMCache's own processes answer, by node; empty where it is within vLLM.
    """

    prefill: str
    decode: str
    controller: str
    owner: str
    ranks: int = 1
    dtype: str = "auto"
    threshold: Threshold = PULL_ALWAYS
    caches: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A canary's end in a word and a sentence; times to first token in seconds, where there were any."""

    state: State
    sentence: str
    pulled_s: float | None = None
    computed_s: float | None = None


def look(pair: Pair, keys: Keys, seed: int | None = None) -> Finding:
    """Ask both servers, and return what came of it; nothing that they do is raised."""
    try:
        return _Canary(pair, keys, random.SystemRandom().randrange(2**31) if seed is None else seed).run()
    except RequestFailedError as error:
        return Finding(State.UNANSWERED, f"{error}.")
    except (ValueError, LookupError, TypeError) as error:
        return Finding(State.UNANSWERED, f"an answer cannot be read: {error!r}.")


class _Canary:
    def __init__(self, pair: Pair, keys: Keys, seed: int) -> None:
        self.pair, self.seed = pair, seed
        servers = servers_of(pair, keys)
        self.prefill, self.decode = servers["prefill"], servers["decode"]
        self.sharing = sharing_of(pair, DEFAULT_CHUNK_SIZE, keys)
        self.model = ""

    def run(self) -> Finding:
        probe = self.decode.await_healthy(0)
        if probe.model is None:
            raise RequestFailedError(probe.error or f"{self.pair.decode} serves no model")
        self.model = probe.model
        chunks = self._chunks(probe.max_model_len)
        size = chunks * DEFAULT_CHUNK_SIZE
        prompt, other = make_prompts(2, size + TAIL, Spec.vocab, self.seed)
        quoted = self.seed % chunks
        prompt = quoting(prompt, quoted, DEFAULT_CHUNK_SIZE)
        changed = with_other_chunk(prompt, quoted, DEFAULT_CHUNK_SIZE, Spec.vocab, self.seed + len(prompt))

        before = self.sharing.mark()
        cold = self._ask(self.prefill, "cold", prompt)
        if not self.sharing.await_admission([prompt], before, ADMISSION_DEADLINE_S).how:
            return Finding(State.COMPUTED, self.sharing.unheard)
        honest = self._ask(self.prefill, "honest", prompt)
        taken, sent = _taken(self.decode), _transfers(self.prefill)
        pulled = self._ask(self.decode, "pulled", prompt)
        got = poll(lambda: _taken(self.decode) - taken, lambda rise: rise >= size, COUNTED_DEADLINE_S)
        computed = self._ask(self.decode, "computed", other)
        times = (pulled.ttft_ms / 1000, computed.ttft_ms / 1000)
        limit = make_limit(self.pair.dtype, [distance(cold.output, honest.output)])
        off = distance(honest.output, pulled.output)
        if off > limit.value:
            return Finding(State.WRONG, f"the answers are off by {off:.2g}, limit {limit.value:.2g}.", *times)
        if got < size:
            return Finding(State.COMPUTED, f"decode took {got} of {size} tokens from its peer.", *times)
        if not poll(lambda: _transfers(self.prefill) > sent, bool, EXPORT_DEADLINE_S):
            return Finding(State.UNSENT, f"decode took {got} tokens, and prefill counts no transfer.", *times)
        wrong = self._ask(self.prefill, "changed", changed, f"{VLLM_ONLY}{self.seed}")
        moved = distance(honest.output, wrong.output)
        if moved < SENSITIVITY * limit.value:
            sentence = f"one chunk changed moves the answer by {moved:.2g}, limit {limit.value:.2g}."
            return Finding(State.BLIND, sentence, *times)
        return Finding(State.PROVEN, f"{got} tokens from the peer, the answers off by {off:.2g}.", *times)

    def _chunks(self, longest: int | None) -> int:
        """Return how many chunks to ask with: as many as decode pulls, as far as the model takes them."""
        due = max(CHUNKS, math.ceil((self.pair.threshold.tokens or 0) / DEFAULT_CHUNK_SIZE))
        room = math.inf if longest is None else (longest - ANSWER_TOKENS - TAIL) // DEFAULT_CHUNK_SIZE
        return int(max(1, min(due, room)))

    def _ask(self, server: ServerClient, name: str, prompt: Prompt, salt: str | None = None) -> Completion:
        request_id = f"kvshare-canary-{self.seed}-{name}"
        return complete(server.http, self.model, Ask(request_id, prompt, ANSWER_TOKENS, salt, logprobs=True))


def _taken(server: ServerClient) -> int:
    """Return the prompt tokens whose KV came from LMCache, its own or a peer's."""
    sources = _reading(server).sources
    if sources is None:
        raise RequestFailedError(f"{server.http.base}/metrics does not tell where tokens came from")
    return sources.external_kv_transfer


def _transfers(server: ServerClient) -> float:
    return _reading(server).counters.transfers


def _reading(server: ServerClient) -> Reading:
    reading = server.read()
    if reading is None:
        raise RequestFailedError(f"{server.http.base}/metrics does not answer")
    return reading
