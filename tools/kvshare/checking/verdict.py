"""What the results of all checks come to, whichever command made them: the cause, the exit code."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from kvshare.checking.registry import ERROR, OfStack, Registry, Result
from kvshare.errors import COULD_NOT_CHECK, FAILED, PROVEN

E = TypeVar("E", bound=OfStack)


@dataclass(frozen=True)
class Verdict(ABC, Generic[E]):
    """Evidence and the results of the selected checks."""

    evidence: E
    results: tuple[Result, ...]

    registry: ClassVar[Registry[Any]]
    outside: ClassVar[tuple[str, ...]]  # ids of checks whose failure says nothing about what was to be judged

    @classmethod
    def of(cls, evidence: E, selected: Collection[str]) -> Self:
        """Judge the evidence by the selected checks."""
        return cls(evidence, cls.registry.evaluate(evidence, selected))

    @property
    @abstractmethod
    def sentence(self) -> str:
        """The last line: what it all comes to."""

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
