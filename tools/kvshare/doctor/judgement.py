"""What the doctor's results come to: ready or not, the cause, the exit code."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kvshare.checking.verdict import Verdict
from kvshare.doctor.checks import REGISTRY, evaluate
from kvshare.doctor.evidence import Evidence


@dataclass(frozen=True)
class Diagnosis(Verdict[Evidence]):
    """Evidence and the results of the selected checks."""

    outside = ("DOC-ENG-01",)  # a failure here says nothing about the machine

    @property
    def sentence(self) -> str:
        """The last line: what it all comes to."""
        if self.failures:
            return f"NOT ready: {self.failures}"
        if self.unjudged:
            return f"nothing failed, but {self.unjudged[0].check.id} was {self.unjudged[0].detail}"
        if len(self.results) < len(REGISTRY):
            return f"nothing failed in {len(self.results)} of {len(REGISTRY)} checks"
        return "ready: kvshare up, then kvshare verify"


def judge(evidence: Evidence, selected: Collection[str]) -> Diagnosis:
    """Evaluate the selected checks on the evidence."""
    return Diagnosis(evidence, evaluate(evidence, selected))
