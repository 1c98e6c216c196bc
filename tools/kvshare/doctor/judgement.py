"""What the doctor's results come to: ready or not, the cause, the exit code."""

from dataclasses import dataclass

from kvshare.checking.verdict import Verdict
from kvshare.doctor.checks import REGISTRY
from kvshare.doctor.evidence import Evidence


@dataclass(frozen=True)
class Diagnosis(Verdict[Evidence]):
    """Evidence and the results of the selected checks."""

    registry = REGISTRY
    outside = ("DOC-ENG-01",)  # a failure here says nothing about the machine

    @property
    def sentence(self) -> str:
        if self.failures:
            return f"NOT ready: {self.failures}"
        if self.unjudged:
            return f"nothing failed, but {self.unjudged[0].check.id} was {self.unjudged[0].detail}"
        if len(self.results) < len(REGISTRY):
            return f"nothing failed in {len(self.results)} of {len(REGISTRY)} checks"
        return "ready: make up, then make verify"


judge = Diagnosis.of
