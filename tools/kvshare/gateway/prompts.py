"""What of a request decides its KV: how long its prompt is, and what it has in common with earlier ones."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BLOCK = 512  # bytes of a body that are compared as one: a third of a chunk as token ids, half as English text
TOKEN_BYTES = 4
# Beside model and prompt, what a prompt's tokens or its keys depend on.
DECIDES_KV = ("model", "cache_salt", "tools", "chat_template", "chat_template_kwargs", "documents")
# What concerns the answer alone, of which prefill is asked for one token.
OF_THE_ANSWER = frozenset(
    ("best_of", "logprobs", "max_completion_tokens", "max_tokens", "min_tokens", "n", "stream")
) | {"stream_options", "top_logprobs", "use_beam_search"}
# What /tokenize understands.
OF_TOKENIZE = frozenset(
    ("add_generation_prompt", "add_special_tokens", "chat_template", "chat_template_kwargs", "messages")
) | {"continue_final_message", "model", "prompt", "tools"}
Body = Mapping[str, msgspec.Raw]  # its values as they came: numbers are not made only to be written again
_BODY = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VALUES = msgspec.json.Decoder(list[msgspec.Raw])
_NULL = msgspec.Raw(b"null")
_TOKENS = re.compile(rb"\[\s*\d")  # how a list of token ids begins


@dataclass(frozen=True)
class Prompt:
    """A request's prompt; ``size`` is its tokens where ``kind`` is ``tokens``, else its bytes of text."""

    kind: str
    body: Body
    size: int
    length: int  # bytes of what ``blocks`` were made of
    blocks: tuple[int, ...]  # a hash a whole block, of it and of all that stands before it

    def share_beyond(self, blocks: int) -> float:
        """Return which share of the prompt comes after its first ``blocks``."""
        return 1 - min(1.0, blocks * BLOCK / self.length) if self.length else 1.0

    def for_prefill(self) -> bytes:
        """Return the body that makes a server compute the same KV, and one token."""
        kept = {name: value for name, value in self.body.items() if name not in OF_THE_ANSWER}
        return msgspec.json.encode({**kept, "max_tokens": 1, "stream": False})

    def for_tokenize(self) -> bytes:
        """Return the body with which /tokenize counts this prompt."""
        return msgspec.json.encode({name: v for name, v in self.body.items() if name in OF_TOKENIZE})


def read(path: str, raw: bytes) -> Prompt | None:
    """Return a request's prompt, or None where reuse is not about it, or a server will say what is wrong.

    Of several prompts in one request the longest counts. Log-probabilities of a prompt need it all computed.
    """
    if path not in (COMPLETIONS, CHAT):
        return None
    try:
        body = _BODY.decode(raw)
        if _value(body, "prompt_logprobs") is not None or _value(body, "echo"):
            return None
        return _chat(body) if path == CHAT else _completion(body)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _value(body: Body, name: str) -> Any:
    return msgspec.json.decode(body.get(name, _NULL))


def _completion(body: Body) -> Prompt | None:
    prompt = bytes(body["prompt"])
    if prompt.startswith(b"[") and not _TOKENS.match(prompt):
        prompt = max(map(bytes, _VALUES.decode(prompt)), key=len)
    if prompt.startswith(b'"'):
        return Prompt("text", body, len(prompt) - 2, len(prompt), _blocks(body, prompt))
    if _TOKENS.match(prompt):
        return Prompt("tokens", body, prompt.count(b",") + 1, len(prompt), _blocks(body, prompt))
    return None


def _chat(body: Body) -> Prompt:
    messages = bytes(body["messages"])
    size = sum(map(_text_size, _value(body, "messages"))) + len(bytes(body.get("tools", b"")))
    return Prompt("chat", body, size, len(messages), _blocks(body, messages))


def _text_size(message: Mapping[str, Any]) -> int:
    """Return a message's bytes of text: a picture's tokens have nothing to do with its bytes."""
    content = message.get("content") or ""
    parts: Sequence[Any] = [{"text": content}] if isinstance(content, str) else content
    return sum(len(str(part.get("text") or "").encode()) for part in parts)


def _blocks(body: Body, text: bytes) -> tuple[int, ...]:
    """Return a hash of each whole block; the last byte, which ends a list or a text, is not looked at."""
    before = hash(tuple(bytes(body.get(name, _NULL)) for name in DECIDES_KV))
    found = []
    for start in range(0, len(text) - BLOCK, BLOCK):
        before = hash((before, text[start : start + BLOCK]))
        found.append(before)
    return tuple(found)


@dataclass
class Rates:
    """Tokens a byte of text, by the kind of prompt, learned from what servers counted."""

    STEP = 0.2  # of the difference, an answer
    by_kind: dict[str, float] = field(default_factory=lambda: {"tokens": 1.0})

    def knows(self, prompt: Prompt) -> bool:
        """Return whether a server has counted a prompt of that kind."""
        return prompt.kind in self.by_kind

    def learn(self, prompt: Prompt, tokens: int) -> None:
        """Take what a server counted of a prompt."""
        if prompt.kind != "tokens" and prompt.size:
            seen = tokens / prompt.size
            known = self.by_kind.get(prompt.kind, seen)
            self.by_kind[prompt.kind] = known + self.STEP * (seen - known)

    def tokens_of(self, prompt: Prompt) -> float:
        """Return about how many tokens a prompt has; of token ids exactly."""
        return prompt.size * self.by_kind.get(prompt.kind, 0.0)
