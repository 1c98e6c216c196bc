"""Requests under load: a number in flight, or Poisson arrivals; alone, or one after the other."""

import random
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, cycle, pairwise

from kvshare.bench.observed import Request
from kvshare.servers.completion import Ask, Completion, complete
from kvshare.servers.http import Http, RequestFailedError

MAX_IN_FLIGHT = 256  # of Poisson arrivals; beyond it requests would wait here, not at the server
PATIENCE_S = 300.0  # a long queue is a result, a server that is gone is not
SWITCH_INTERVAL_S = 0.0005  # Python's own 5 ms would add to a token's time at high concurrency


@dataclass(frozen=True)
class Loaded:
    """What came of the requests, in the order of sending, and the seconds from first to last."""

    requests: tuple[Request, ...]
    wall_s: float


def arrivals(count: int, rate: float, seed: int) -> tuple[float, ...]:
    """Return the seconds from the start at which ``count`` Poisson arrivals fall, ``rate`` a second."""
    draw, moment, moments = random.Random(seed), 0.0, []
    for _ in range(count):
        moments.append(moment)
        moment += draw.expovariate(rate)
    return tuple(moments)


def send(
    asks: Sequence[Ask],
    base: str,
    model: str,
    api_key: str | None,
    concurrency: int = 1,
    due_s: Sequence[float] | None = None,
) -> Loaded:
    """Send every ask, ``concurrency`` in flight, or each at its moment of ``due_s``; failures are results."""
    return send_talks([(ask,) for ask in asks], (base,), model, api_key, concurrency, due_s)


def send_talks(
    talks: Sequence[Sequence[Ask]],
    bases: Sequence[str],
    model: str,
    api_key: str | None,
    concurrency: int = 1,
    due_s: Sequence[float] | None = None,
) -> Loaded:
    """Send as ``send`` does, of a talk each ask once the one before is answered; the bases take turns."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    workers = min(len(talks), MAX_IN_FLIGHT if due_s is not None else concurrency)
    mine, turns = threading.local(), cycle(range(len(bases)))
    start = time.perf_counter()

    def talk(number: int) -> list[tuple[Request, float]]:
        if due_s is not None:
            time.sleep(max(0.0, start + due_s[number] - time.perf_counter()))
        return [_one(mine.http[next(turns)], model, ask, start) for ask in talks[number]]

    def connect() -> None:
        mine.http = [Http(base, api_key) for base in bases]

    with ThreadPoolExecutor(workers, initializer=connect) as pool:
        done = list(chain.from_iterable(pool.map(talk, range(len(talks)))))
    first = min(request.sent_s for request, _ in done)
    return Loaded(tuple(request for request, _ in done), max(end for _, end in done) - start - first)


def _one(http: Http, model: str, ask: Ask, start: float) -> tuple[Request, float]:
    """Return the request and the moment of its last token."""
    before = time.perf_counter()
    try:
        answer = complete(http, model, ask, PATIENCE_S)
    except RequestFailedError as error:
        failed = Request(ask.request_id, before - start, len(ask.prompt), error=str(error))
        return failed, time.perf_counter()
    return _as_request(ask.request_id, answer, start), answer.token_times[-1]


def _as_request(request_id: str, answer: Completion, start: float) -> Request:
    times = answer.token_times
    return Request(
        request_id=request_id,
        sent_s=answer.sent - start,
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        ttft_ms=answer.ttft_ms,
        e2e_ms=answer.e2e_ms,
        gaps_ms=tuple(round((b - a) * 1000, 4) for a, b in pairwise(times)),
    )
