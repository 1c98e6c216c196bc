"""What the results of all checks come to, whichever command made them: the cause, the exit code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from kvshare.checking.registry import ERROR, Result
from kvshare.errors import COULD_NOT_CHECK, FAILED, PROVEN

E = TypeVar("E")


@dataclass(frozen=True)
class Verdict(Generic[E]):
    """Evidence and the results of the selected checks."""

    evidence: E
    results: tuple[Result, ...]

    outside: ClassVar[tuple[str, ...]]  # ids of checks whose failure says nothing about what was to be judged

    @property
    def errors(self) -> tuple[Result, ...]:
        """The failed checks, the cause first."""
        return tuple(result for result in self.results if result.result == ERROR)

    @property
    def cause(self) -> Result | None:
        """The first failure in causal order."""
        return self.errors[0] if self.errors else None

    @property
    def unjudged(self) -> tuple[Result, ...]:
        """The selected checks that ought to have been judged and could not be, warnings aside."""
        return tuple(result for result in self.results if result.unjudged)

    @property
    def exit_code(self) -> int:
        """0: nothing failed, 1: a check failed, 3: it could not be judged."""
        if any(result.check.id in self.outside for result in self.errors):
            return COULD_NOT_CHECK
        if self.errors:
            return FAILED
        return COULD_NOT_CHECK if self.unjudged else PROVEN

    @property
    def failures(self) -> str:
        """The cause and what failed after it, in words; empty if nothing failed."""
        if self.cause is None:
            return ""
        more = ", ".join(result.check.id for result in self.errors[1:])
        return f"cause {self.cause.check.id}, {self.cause.found}" + (f" (then {more})" if more else "")
