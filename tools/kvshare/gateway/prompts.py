"""What of a request decides its KV: how long its prompt is, and what it has in common with earlier ones."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BLOCK = 256  # bytes that are compared as one: as token ids or as English text a quarter of a chunk
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


@dataclass(frozen=True)
class Prompt:
    """A request's prompt; ``size`` is its tokens where ``kind`` is ``tokens``, else its bytes of text."""

    kind: str
    body: Mapping[str, Any]
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
        body = msgspec.json.decode(raw)
        if not isinstance(body, dict) or body.get("prompt_logprobs") is not None or body.get("echo"):
            return None
        return _chat(body) if path == CHAT else _completion(body)
    except (msgspec.MsgspecError, OverflowError, TypeError, ValueError, AttributeError):
        return None


def _completion(body: Mapping[str, Any]) -> Prompt | None:
    prompts = body.get("prompt")
    if not isinstance(prompts, list) or (prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    longest = max(prompts, key=len)
    if isinstance(longest, str):
        text = longest.encode()
        return Prompt("text", body, len(text), len(text), _blocks(body, text))
    ids = array("I", longest).tobytes()
    return Prompt("tokens", body, len(longest), len(ids), _blocks(body, ids))


def _chat(body: Mapping[str, Any]) -> Prompt:
    messages = body["messages"]
    # Without the list's end, so that the next turn of a conversation begins with the same bytes.
    text = msgspec.json.encode(messages)[:-1]
    size = sum(map(_text_size, messages)) + len(msgspec.json.encode(body.get("tools") or ""))
    return Prompt("chat", body, size, len(text), _blocks(body, text))


def _text_size(message: Mapping[str, Any]) -> int:
    """Return a message's bytes of text: a picture's tokens have nothing to do with its bytes."""
    content = message.get("content") or ""
    parts: Sequence[Any] = [{"text": content}] if isinstance(content, str) else content
    return sum(len(str(part.get("text") or "").encode()) for part in parts)


def _blocks(body: Mapping[str, Any], text: bytes) -> tuple[int, ...]:
    before = hash(msgspec.json.encode([body.get(name) for name in DECIDES_KV]))
    found = []
    for start in range(0, len(text) - BLOCK + 1, BLOCK):
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
