"""What the doctor's results come to: ready or not, the cause, the exit code."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kvshare.doctor.checks import REGISTRY, evaluate
from kvshare.doctor.evidence import Evidence
from kvshare.errors import COULD_NOT_CHECK, FAILED, PROVEN
from kvshare.registry import ERROR, Result

UNREACHABLE = "DOC-ENG-01"  # a failure here says nothing about the machine


@dataclass(frozen=True)
class Diagnosis:
    """Evidence and the results of the selected checks."""

    evidence: Evidence
    results: tuple[Result, ...]

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
        """The selected checks that ought to have been judged and could not be."""
        return tuple(result for result in self.results if result.unjudged)

    @property
    def exit_code(self) -> int:
        """0: nothing failed, 1: a check failed, 3: an engine or a check could not be looked at."""
        if any(result.check.id == UNREACHABLE for result in self.errors):
            return COULD_NOT_CHECK
        if self.errors:
            return FAILED
        return COULD_NOT_CHECK if self.unjudged else PROVEN

    @property
    def sentence(self) -> str:
        """The last line: what it all comes to."""
        if self.cause is not None:
            more = ", ".join(result.check.id for result in self.errors[1:])
            return f"NOT ready: cause {self.cause.check.id}, {self.cause.found}" + (
                f" (then {more})" if more else ""
            )
        if self.unjudged:
            return f"nothing failed, but {self.unjudged[0].check.id} was {self.unjudged[0].detail}"
        if len(self.results) < len(REGISTRY):
            return f"nothing failed in {len(self.results)} of {len(REGISTRY)} checks"
        return "ready: kvshare up, then kvshare verify"


def judge(evidence: Evidence, selected: Collection[str]) -> Diagnosis:
    """Evaluate the selected checks on the evidence."""
    return Diagnosis(evidence, evaluate(evidence, selected))
