"""What the results of all checks come to: proven or not, the cause, the exit code."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvshare.checking.registry import SUCCESS, Check
from kvshare.checking.verdict import Verdict
from kvshare.errors import COULD_NOT_CHECK, FAILED, PROVEN
from kvshare.verify.checks import DEEP, REGISTRY
from kvshare.verify.checks.verdict import worth
from kvshare.verify.evidence import Evidence


@dataclass(frozen=True)
class Judgement(Verdict[Evidence]):
    """Evidence and the results of the selected checks."""

    registry = REGISTRY
    outside = ("ENG-01", "CLIENT-01")  # a failure here says nothing about the stack

    @property
    def proven(self) -> bool:
        """Whether every check that this stack needs was made and holds; of --deep's, all that were made.

        A mere warning is none of them.
        """
        settled = {
            result.check.id for result in self.results if result.result == SUCCESS or not result.needed
        }
        due = (check.id for check in self._of_proof if not check.warning)
        return settled.issuperset(due) and not self.errors and not self.unjudged

    @property
    def _of_proof(self) -> tuple[Check[Evidence], ...]:
        return tuple(check for check in REGISTRY.about(self.evidence.stack) if check.id not in DEEP)

    @property
    def sentence(self) -> str:
        if self.failures:
            return f"NOT proven: {self.failures}"
        if self.unjudged:
            return f"NOT proven: {self.unjudged[0].check.id} was {self.unjudged[0].detail}"
        if not self.proven:
            made = f"nothing failed in {len(self.results)} of {len(self._of_proof)} checks"
            return f"{made}; the proof needs all of them, without --only and --skip"
        traffic = self.evidence.traffic
        assert traffic is not None, "a proof has traffic"
        verdict = worth(traffic)
        pays = f"; {verdict.sentence}" if verdict else ""
        prompts = traffic.spec.prompts
        return f"proven: {prompts} prompts served from the peer's KV cache with the right answers{pays}"


judge = Judgement.of


def exit_code_of(judgements: Sequence[Judgement]) -> int:
    """Return one exit code for all: a failure before what could not be checked, before a proof."""
    codes = {judgement.exit_code for judgement in judgements}
    return next((code for code in (FAILED, COULD_NOT_CHECK) if code in codes), PROVEN)
