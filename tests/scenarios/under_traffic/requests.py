"""Requests as users send them, drawn from a seed: a case is a sequence of waves, a wave is sent at once."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvshare.servers.completion import VLLM_ONLY
from tests.scenarios.conftest import LETTERS, letters

NODES = ("prefill", "decode")
MODEL, ADAPTERS = "/models/kvshare-demo", ("a", "b")
MAX_MODEL_LEN = 1600
FAMILIES = 6
# Lengths around the edges of LMCache's chunks (256 tokens) and of vLLM's blocks (16).
SHARED = (0, 17, 255, 256, 257, 511, 512, 513, 600, 768, 1024, 1280)
OWN = (1, 2, 15, 16, 17, 60, 250, 256)
WAVE, BURST = 5, 10
BURST_EVERY = 6  # waves

# What LMCache would choke on: each is answered with 400.
HOSTILE: tuple[Any, ...] = (
    {"disagg_spec": {}},
    {"ret_first_tok": 1},
    {"lmcache.tag.x": ["a"]},
    {"lmcache.tag.x": "a@b"},
    {"lmcache.identity": "mine"},
    {"do_remote_prefill": True, "remote_block_ids": [0]},
    "text",
)
# What vLLM answers as it likes: with the same status wherever it is asked.
ODD: tuple[dict[str, Any], ...] = (
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"temperature": -1},
    {"top_p": 2},
    {"n": 0},
    {"logprobs": 100},
    {"stop": ["e"] * 17},
    {"model": "nobody"},
    {"cache_salt": ""},
    {"prompt": ""},
    {"prompt": [3] * (MAX_MODEL_LEN + 1)},
    {"prompt": [-1]},
    {"prompt": [10**9]},
    {"priority": "high"},
    {"seed": -1},
    {"seed": 2**63},
    {"truncate_prompt_tokens": 300},
    {"logit_bias": {"100": 100, "101": -100}},
    {"logit_bias": {"100000": 1}},
    {"allowed_token_ids": [100, 101, 102]},
    {"bad_words": ["a", "e"]},
    {"min_tokens": 4, "max_tokens": 4},
    {"min_tokens": 9, "max_tokens": 4},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"suffix": "x"},
    {"kv_transfer_params": None},
    {"kv_transfer_params": {}},
    {"kv_transfer_params": {"lmcache.skip_save": True}},
    {"kv_transfer_params": {"lmcache.tag.team": "one"}},
    {"vllm_xargs": {"note": "x"}},
    {"nobody_knows_this": [1, {"a": None}]},
)


@dataclass(frozen=True)
class Text:
    """A prompt: so many first letters of a family's text, then letters of its own; a letter is a token."""

    family: int
    shared: int
    own: int
    seed: int

    def written(self, run: str) -> str:
        """The text; another ``run`` has other letters, so that nothing of it is cached anywhere."""
        return letters(f"{run} {self.family}", self.shared) + letters(f"{run} own {self.seed}", self.own)


@dataclass(frozen=True)
class Request:
    """A completion at one node; several texts are several prompts of one request.

    Attributes:
        fields: of the body, beside the prompt.
        hang_up_s: after how many seconds the client goes away, if it does.
        refused: whether it must be answered with 400, whatever a server without sharing says.
    """

    node: str
    texts: tuple[Text, ...]
    fields: dict[str, Any] = field(default_factory=dict)
    hang_up_s: float | None = None
    refused: bool = False

    @property
    def kind(self) -> tuple[str, str]:
        """What its KV belongs to besides its text: a model or an adapter, and LMCache's salt."""
        salt = str(self.fields.get("cache_salt") or "")
        return str(self.fields.get("model", MODEL)), "" if salt.startswith(VLLM_ONLY) else salt

    @property
    def is_drawn(self) -> bool:
        """Whether its tokens are drawn by a seed: the same wherever it is asked."""
        return {"seed", "temperature"} <= self.fields.keys()

    def body(self, run: str) -> dict[str, Any]:
        prompts = [text.written(run) for text in self.texts]
        body = {"prompt": prompts[0] if len(prompts) == 1 else prompts, **DEFAULTS, **self.fields}
        if body["stream"]:
            body["stream_options"] = {"include_usage": True}
        return body


DEFAULTS: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 4,
    "temperature": 0,
    "logprobs": 5,
    "return_tokens_as_token_ids": True,
    "stream": False,
}
# vLLM 0.32.0 may end a stream of both with an error, whoever serves it: where a busy server merges the events
# of two choices, RequestOutput.add drops the prompt's log-probabilities of the one that begins.
NOT_STREAMED = {"echo", "n"}
Wave = tuple[Request, ...]
Case = tuple[Wave, ...]
# What a request may carry, and must be answered with now and then.
CARRIED = {
    *("model", "cache_salt", "seed", "n", "repetition_penalty", "stop"),
    *("prompt_logprobs", "echo", "stream", "priority"),
}
# With what share of requests what is added to their fields.
Features = tuple[tuple[float, Callable[[random.Random], dict[str, Any]]], ...]


def draw_case(seed: int, waves: int) -> Case:
    """Return a case, a function of the seed alone."""
    draw = random.Random(seed)
    return tuple(_burst(draw) if n % BURST_EVERY == BURST_EVERY - 1 else _wave(draw) for n in range(waves))


def _wave(draw: random.Random) -> Wave:
    return tuple(_request(draw) for _ in range(draw.randint(1, WAVE)))


def _burst(draw: random.Random) -> Wave:
    """More than a server's memory holds, half of it on each: requests are preempted, chunks evicted."""
    return tuple(_long(draw, NODES[number % 2]) for number in range(BURST))


def _long(draw: random.Random, node: str) -> Request:
    text = Text(draw.randrange(FAMILIES), draw.choice((512, 600)), draw.choice(OWN), draw.randrange(2**31))
    fields = {
        "max_tokens": draw.choice((120, 200)),
        "ignore_eos": True,
        **_sometimes(draw, 0.3, _reads_prompt),
        **_sometimes(draw, 0.4, _adapter),
        **_sometimes(draw, 0.2, _seed),
    }
    return Request(node, (text,), fields | _sometimes(draw, 0.3, _priority))


def _request(draw: random.Random) -> Request:
    node, text = draw.choice(NODES), _text(draw)
    chance = draw.random()
    if chance < 0.08:
        return Request(node, (text,), {"kv_transfer_params": draw.choice(HOSTILE)}, refused=True)
    if chance < 0.2:
        return Request(node, (text,), dict(draw.choice(ODD)))
    texts = (text, *(_text(draw) for _ in range(2))) if draw.random() < 0.06 else (text,)
    fields: dict[str, Any] = {"max_tokens": draw.choice((1, 2, 4, 8, 16))}
    for share, feature in FEATURES:
        fields |= _sometimes(draw, share, feature)
    if fields.keys() >= NOT_STREAMED:
        fields.pop("stream", None)
    hang_up_s = draw.choice((0.02, 0.1, 0.3, 0.8)) if draw.random() < 0.12 else None
    return Request(node, texts, fields, hang_up_s)


def _text(draw: random.Random) -> Text:
    return Text(draw.randrange(FAMILIES), draw.choice(SHARED), draw.choice(OWN), draw.randrange(2**31))


def _sometimes(
    draw: random.Random, share: float, feature: Callable[[random.Random], dict[str, Any]]
) -> dict[str, Any]:
    return feature(draw) if draw.random() < share else {}


def _reads_prompt(draw: random.Random) -> dict[str, Any]:
    return {"prompt_logprobs": draw.choice((0, 1))}


def _priority(draw: random.Random) -> dict[str, Any]:
    return {"priority": draw.choice((-1, 1, 5))}


def _penalties(draw: random.Random) -> dict[str, Any]:
    return {draw.choice(("presence_penalty", "frequency_penalty")): 0.5, "repetition_penalty": 1.1}


def _adapter(draw: random.Random) -> dict[str, Any]:
    return {"model": draw.choice(ADAPTERS)}


def _seed(draw: random.Random) -> dict[str, Any]:
    """As hot as vLLM lets it be: the seed decides what is drawn, noise in the logits as good as never."""
    return {"seed": draw.randrange(2**31), "temperature": 2}


FEATURES: Features = (
    (0.40, _adapter),
    (0.10, _seed),
    (0.10, _reads_prompt),
    (0.05, lambda _: {"echo": True}),
    (0.35, lambda draw: {"cache_salt": draw.choice(("one", "two", f"{VLLM_ONLY}three"))}),
    (0.15, lambda draw: {"n": 2, **_seed(draw)}),  # what is greedy has one answer
    (0.15, lambda draw: {"stop": draw.sample(LETTERS, 4), "max_tokens": 16}),
    (0.10, _penalties),
    (0.30, lambda _: {"stream": True}),
    (0.15, _priority),
)
