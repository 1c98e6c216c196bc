"""How much KV a request may have been answered from: what requests of its own kind have sent."""

from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile

from tests.scenarios.under_traffic.requests import Request, Text


def too_much(request: Request, reused: int, sent: Iterable[Request], run: str) -> str | None:
    """Return what is wrong with so many tokens of a prompt that were not computed for it, or None.

    ``sent`` are all requests of the run until now. Who sends several prompts or wants several choices reuses
    KV of its own.
    """
    if len(request.texts) > 1 or "n" in request.fields:
        return None
    alike = (other for other in sent if other is not request and other.kind == request.kind)
    texts = (text for other in alike for text in other.texts)
    known = max((_common(request.texts[0], text, run) for text in texts), default=0)
    return f"{reused} tokens reused, of which its kind has sent {known}" if reused > known else None


@lru_cache(maxsize=100_000)
def _common(a: Text, b: Text, run: str) -> int:
    """How many first letters two texts have in common."""
    pairs = zip(_written(a, run), _written(b, run), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@lru_cache(maxsize=1000)
def _written(text: Text, run: str) -> str:
    return text.written(run)
