"""One streamed completion: the tokens and when they came, by the client's own clock."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvshare.servers.http import READ_TIMEOUT_S, Http, RequestFailedError
from kvshare.servers.readings import Position

PATH = "/v1/completions"
TOP_LOGPROBS = 5
VLLM_ONLY = "vllm-only:"  # a salt that begins so is none of LMCache's business (docs/patches.md, identity)


@dataclass(frozen=True)
class Ask:
    """What to complete.

    Attributes:
        prompt: token ids.
        salt: sets vLLM's own prefix cache aside.
        logprobs: whether to ask for each token's id and the most likely ones at its place.
        shared: whether LMCache may keep its KV; what is not kept is found by nobody.
    """

    request_id: str
    prompt: Sequence[int]
    max_tokens: int
    salt: str | None = None
    logprobs: bool = False
    shared: bool = True


@dataclass(frozen=True)
class Completion:
    """An answer: tokens from `usage`, times in seconds of ``time.perf_counter``.

    Attributes:
        token_times: when each event with a token arrived, at least one.
        output: the tokens' positions, if log-probabilities were asked for.
    """

    sent: float
    prompt_tokens: int
    output_tokens: int
    token_times: tuple[float, ...]
    output: tuple[Position, ...] = ()

    @property
    def ttft_ms(self) -> float:
        """Time to first token in milliseconds."""
        return (self.token_times[0] - self.sent) * 1000

    @property
    def e2e_ms(self) -> float:
        """Time to the last token in milliseconds."""
        return (self.token_times[-1] - self.sent) * 1000


def complete(http: Http, model: str, ask: Ask, timeout: float = READ_TIMEOUT_S) -> Completion:
    """Send a prompt and return its timed answer; RequestFailedError if there is none."""
    stream = http.stream(PATH, _body(model, ask), ask.request_id, timeout)
    times: list[float] = []
    output: list[Position] = []
    prompt_tokens = output_tokens = 0
    for arrived, data in stream.events:
        event = json.loads(data)
        if "error" in event:
            raise RequestFailedError(f"{http.base} gives up in its answer: {event['error'].get('message')}")
        usage = event.get("usage") or {}
        prompt_tokens = usage.get("prompt_tokens", prompt_tokens)
        if usage.get("completion_tokens", 0) > output_tokens:
            output_tokens = usage["completion_tokens"]
            times.append(arrived)
        if ask.logprobs:
            output += _positions(event)
    if not times:
        raise RequestFailedError(f"{http.base} ended its answer to {ask.request_id} before the first token")
    return Completion(stream.sent, prompt_tokens, output_tokens, tuple(times), tuple(output))


def _body(model: str, ask: Ask) -> dict[str, Any]:
    """Return the request; usage in every event tells which of them carry a token, and how many."""
    body = {
        "model": model,
        "prompt": list(ask.prompt),
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if ask.salt:
        body["cache_salt"] = ask.salt
    if not ask.shared:
        body["kv_transfer_params"] = {"lmcache.skip_save": True}
    if ask.logprobs:
        # Tokens as ids, because two of them may have the same text.
        body |= {"logprobs": TOP_LOGPROBS, "return_tokens_as_token_ids": True}
    return body


def _positions(event: dict[str, Any]) -> list[Position]:
    found = []
    for choice in event.get("choices", ()):
        logprobs = choice.get("logprobs") or {"tokens": (), "top_logprobs": ()}
        for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
            ranked = sorted(((_token_id(t), float(p)) for t, p in top.items()), key=lambda pair: -pair[1])
            found.append(Position(_token_id(token), tuple(ranked)))
    return found


def _token_id(text: str) -> int:
    return int(text.removeprefix("token_id:"))
