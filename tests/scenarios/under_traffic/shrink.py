"""The smallest case that still fails, and a test of it to be copied.

Source: A. Zeller, R. Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002 (ddmin), here over
requests, then over each one's fields and lengths.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from tests.scenarios.under_traffic.requests import Case, Request, Text

Fails = Callable[[Case], bool]
T = TypeVar("T")


@dataclass
class _Budget:
    """How many more cases may be tried, and until when on the monotonic clock."""

    fails: Fails
    left: int
    until: float

    def try_one(self, case: Case) -> bool:
        if self.left <= 0 or time.monotonic() > self.until or not any(case):
            return False
        self.left -= 1
        return self.fails(case)


def shrink(case: Case, fails: Fails, tries: int, seconds: float) -> Case:
    """Return a case no larger than ``case`` that ``fails`` says still fails.

    After at most so many tries, the last of them begun before so many seconds are over.
    """
    budget = _Budget(fails, tries, time.monotonic() + seconds)
    case = _fewer(case, budget)
    while smaller := next((one for one in _simpler(case) if budget.try_one(one)), None):
        case = smaller
    return case


def as_test(case: Case) -> str:
    """Return the source of a test that plays this case."""
    waves = "".join(f"        ({''.join(f'{request!r}, ' for request in wave)}),\n" for wave in case)
    return f"def test_this_case(oracle: Oracle) -> None:\n    oracle.require((\n{waves}    ))\n"


def _fewer(case: Case, budget: _Budget) -> Case:
    """Leave out ever smaller runs of requests."""
    flat = [(number, request) for number, wave in enumerate(case) for request in wave]
    size = len(flat) // 2
    while size:
        start = 0
        while start < len(flat):
            rest = flat[:start] + flat[start + size :]
            if budget.try_one(_waves(rest)):
                flat = rest
            else:
                start += size
        size //= 2
    return _waves(flat)


def _waves(flat: list[tuple[int, Request]]) -> Case:
    numbers = sorted({number for number, _ in flat})
    return tuple(tuple(request for n, request in flat if n == number) for number in numbers)


def _simpler(case: Case) -> Iterator[Case]:
    for w, wave in enumerate(case):
        for r, request in enumerate(wave):
            for simpler in _simpler_requests(request):
                yield _put(case, w, _put(wave, r, simpler))


def _simpler_requests(request: Request) -> Iterator[Request]:
    if len(request.texts) > 1:
        yield replace(request, texts=request.texts[:1])
    if request.hang_up_s is not None:
        yield replace(request, hang_up_s=None)
    if not request.refused:
        for name in request.fields:
            yield replace(request, fields={k: v for k, v in request.fields.items() if k != name})
    for number, text in enumerate(request.texts):
        for shorter in _shorter(text):
            yield replace(request, texts=_put(request.texts, number, shorter))


def _shorter(text: Text) -> Iterator[Text]:
    for shared in (0, 256, 512):
        if shared < text.shared:
            yield replace(text, shared=shared)
    if text.own > 1:
        yield replace(text, own=1)


def _put(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    return (*items[:index], item, *items[index + 1 :])
