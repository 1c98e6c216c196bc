"""What the results of all checks come to: proven or not, the cause, the exit code."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kvshare.checks import REGISTRY, evaluate, worth
from kvshare.errors import COULD_NOT_CHECK, FAILED, PROVEN
from kvshare.evidence import Evidence
from kvshare.registry import ERROR, SUCCESS, Result

OUTSIDE_THE_STACK = ("ENG-01", "CLIENT-01")  # a failure here says nothing about the stack


@dataclass(frozen=True)
class Judgement:
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
        """The selected checks that could not be judged, warnings aside."""
        return tuple(result for result in self.results if result.unjudged)

    @property
    def proven(self) -> bool:
        """Whether every check that is no mere warning was made and holds."""
        passed = {result.check.id for result in self.results if result.result == SUCCESS}
        return all(check.id in passed for check in REGISTRY if not check.warning)

    @property
    def exit_code(self) -> int:
        """0: nothing failed, 1: a check failed, 3: it could not be judged."""
        if any(result.check.id in OUTSIDE_THE_STACK for result in self.errors):
            return COULD_NOT_CHECK
        if self.errors:
            return FAILED
        return COULD_NOT_CHECK if self.unjudged else PROVEN

    @property
    def sentence(self) -> str:
        """The last line: what it all comes to."""
        if self.cause is not None:
            more = ", ".join(result.check.id for result in self.errors[1:])
            return f"NOT proven: cause {self.cause.check.id}, {self.cause.found}" + (
                f" (then {more})" if more else ""
            )
        if self.unjudged:
            return f"NOT proven: {self.unjudged[0].check.id} was {self.unjudged[0].detail}"
        if not self.proven:
            made = f"nothing failed in {len(self.results)} of {len(REGISTRY)} checks"
            return f"{made}; the proof needs all of them, without --only and --skip"
        traffic = self.evidence.traffic
        assert traffic is not None, "a proof has traffic"
        verdict = worth(traffic)
        pays = f"; {verdict.sentence}" if verdict else ""
        prompts = traffic.spec.prompts
        return f"proven: {prompts} prompts served from the peer's KV cache with the right answers{pays}"


def judge(evidence: Evidence, selected: Collection[str]) -> Judgement:
    """Evaluate the selected checks on the evidence."""
    return Judgement(evidence, evaluate(evidence, selected))


def exit_code_of(judgements: Sequence[Judgement]) -> int:
    """Return one exit code for all: a failure before what could not be checked, before a proof."""
    codes = {judgement.exit_code for judgement in judgements}
    return next((code for code in (FAILED, COULD_NOT_CHECK) if code in codes), PROVEN)
