"""What came of a request, and whether it is what a server that shares no KV says."""

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import requests

from kvshare.servers.readings import Position
from kvshare.verify.tolerance import Limit, distance, first_divergence, is_explained
from tests.scenarios.under_traffic.requests import Request

PATIENCE_S = 240.0  # a request that gets nothing for so long hangs; a burst takes 30 s on two busy cores
LIMIT = Limit(0.001, 0.001, 0.0)  # nats, float32
REFUSED = 400


@dataclass(frozen=True)
class Choice:
    """One choice of an answer; ``prompt`` are the log-probabilities of the prompt's tokens, asked for."""

    positions: tuple[Position, ...]
    finish: str | None
    prompt: tuple[float, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A status, and with 200 the choices; ``error`` where there is no whole answer.

    ``reused`` are the tokens of the prompt that were not computed for it.
    """

    status: int | None
    choices: tuple[Choice, ...] = ()
    error: str | None = None
    hung: bool = False
    left: bool = False  # the client went away
    reused: int = 0


@dataclass
class _Open:
    """A choice that is still coming."""

    tokens: list[str] = field(default_factory=list)
    tops: list[dict[str, float] | None] = field(default_factory=list)
    finish: str | None = None
    prompt: tuple[float, ...] = ()


def ask(url: str, request: Request, run: str, **changes: Any) -> Answer:
    """Send a request and return what came of it, an error included."""
    body = request.body(run) | changes
    patience = PATIENCE_S if request.hang_up_s is None else request.hang_up_s
    try:
        response = requests.post(
            f"{url}/v1/completions",
            json=body,
            stream=bool(body["stream"]),
            timeout=(5, patience),
        )
        if response.status_code != requests.codes.ok:
            return Answer(response.status_code, error=response.text[:300])
        if not body["stream"]:
            return read_answer([response.json()])
        return read_answer(_events(response, time.monotonic() + patience))
    except (requests.Timeout, requests.ConnectionError) as error:
        if request.hang_up_s is not None:
            return Answer(None, left=True)
        return Answer(None, error=str(error), hung=_is_timeout(error))
    except (requests.RequestException, ValueError, KeyError) as error:
        return Answer(None, error=f"{type(error).__name__}: {error}")


def problem(request: Request, shared: Answer, alone: Answer) -> str | None:
    """Return what is wrong with the answer of a server that shares, or None."""
    if shared.left:
        return None
    if shared.hung:
        return "hung"
    if request.refused:
        return None if shared.status == REFUSED else f"status {shared.status} for {REFUSED}: {shared.error}"
    if (shared.status, shared.error is None) != (alone.status, alone.error is None):
        return f"status {shared.status} ({shared.error}), alone {alone.status} ({alone.error})"
    if len(shared.choices) != len(alone.choices):
        return f"{len(shared.choices)} choices, alone {len(alone.choices)}"
    pairs = zip(alone.choices, shared.choices, strict=True)
    found = (_unlike(a, b, request.is_drawn) for a, b in pairs)
    return next((f"wrong: {sentence}" for sentence in found if sentence), None)


def _unlike(alone: Choice, shared: Choice, is_drawn: bool) -> str | None:
    if len(alone.prompt) != len(shared.prompt):
        return f"{len(shared.prompt)} log-probabilities of the prompt, alone {len(alone.prompt)}"
    offs = (abs(a - b) for a, b in zip(alone.prompt, shared.prompt, strict=True))
    if (off := max(offs, default=0.0)) > LIMIT.value:
        return f"log-probabilities of the prompt off by {off:.3g}"
    if bool(alone.positions) != bool(shared.positions):
        return "no token on one side"
    if not alone.positions:
        return None
    if (off := distance(alone.positions, shared.positions)) > LIMIT.value:
        return f"log-probabilities off by {off:.3g}"
    parted = first_divergence(alone.positions, shared.positions)
    if parted is not None:
        if is_drawn:
            return f"token {parted.position + 1} is another, though drawn by one seed"
        if is_explained(parted, LIMIT):
            return None
        return f"token {parted.position + 1} is another, {parted.gap:.3g} less likely"
    ends = [f"{len(one.positions)} tokens, {one.finish}" for one in (shared, alone)]
    return None if ends[0] == ends[1] else f"{ends[0]}; alone {ends[1]}"


def _events(response: requests.Response, until: float) -> Iterable[dict[str, Any]]:
    for line in response.iter_lines():
        if time.monotonic() > until:
            response.close()
            raise requests.Timeout
        data = line.removeprefix(b"data: ")
        if data and data != b"[DONE]":
            yield json.loads(data)


def read_answer(events: Iterable[dict[str, Any]]) -> Answer:
    """Return an answer of one event or of many; ValueError if it is none."""
    found: dict[int, _Open] = {}
    reused = 0
    for event in events:
        if "error" in event:
            return Answer(requests.codes.ok, error=str(event["error"])[:300])
        details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
        reused += details.get("cached_tokens") or 0
        for choice in event["choices"]:
            one = found.setdefault(choice["index"], _Open())
            logprobs = choice.get("logprobs") or {}
            one.tokens += logprobs.get("tokens") or []
            one.tops += logprobs.get("top_logprobs") or []
            one.finish = choice.get("finish_reason") or one.finish
            one.prompt = one.prompt or _of_prompt(choice.get("prompt_logprobs"))
    choices = tuple(_closed(found[index]) for index in sorted(found))
    return Answer(requests.codes.ok, choices, reused=reused)


def _closed(choice: _Open) -> Choice:
    pairs = zip(choice.tokens, choice.tops, strict=True)
    return Choice(
        tuple(_position(t, top) for t, top in pairs if top),
        choice.finish,
        choice.prompt,
    )


def _position(token: str, top: dict[str, float]) -> Position:
    ranked = sorted(((_id(name), value) for name, value in top.items()), key=lambda pair: -pair[1])
    return Position(
        _id(token),
        tuple((name, value) for name, value in ranked if math.isfinite(value)),
    )


def _of_prompt(
    listed: list[dict[str, dict[str, Any]] | None] | None,
) -> tuple[float, ...]:
    """The best log-probability at each of the prompt's tokens but the first, which has none."""
    return tuple(max(one["logprob"] for one in place.values()) for place in listed or () if place)


def _id(text: str) -> int:
    return int(text.removeprefix("token_id:"))


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, requests.Timeout) or "timed out" in str(error)
