"""Whether reuse is worth it."""

from dataclasses import dataclass
from typing import Literal

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.verify import ledger
from kvshare.verify.checks.shared import traffic_of
from kvshare.verify.evidence import CONTROL, PEER, REFERENCE, Evidence, Traffic

CHECKS: Category[Evidence] = Category("verdict")


@dataclass(frozen=True)
class Worth:
    """Whether a pull pays; ``gain`` and ``peer_over_cold`` compare medians of time to first token."""

    verdict: Literal["worth it", "not worth it here"]
    gain: float
    peer_over_cold: float

    @property
    def sentence(self) -> str:
        """The verdict and the gain in words."""
        return f"{self.verdict}, first token {abs(self.gain):.0%} {'sooner' if self.gain > 0 else 'later'}"


def worth(traffic: Traffic) -> Worth | None:
    """Return the verdict, or None if a leg has no time.

    A pull pays if it beats both cold legs: the reference on prefill and the control on decode.
    """
    cold, peer, control = (ledger.median_ttft_ms(traffic.legs, leg) for leg in (REFERENCE, PEER, CONTROL))
    if cold is None or peer is None:
        return None
    pays = peer < cold and (control is None or peer < control)
    return Worth("worth it" if pays else "not worth it here", 1 - peer / cold, peer / cold)


@CHECKS.check(
    "WORTH-01", "a pull beats computing the prompt again", ("KV-PEER-01", "KV-RIGHT-01"), warning=True
)
def _worth_it(evidence: Evidence) -> Outcome:
    """By the median time to first token, against both cold legs: prefill's and decode's.

    A pull costs a fixed part and its bytes over the link; a fast GPU computes a short prompt sooner.
    """
    traffic = traffic_of(evidence)
    verdict = worth(traffic)
    if verdict is None:
        return NotChecked("a leg has no time")
    legs = (REFERENCE, PEER, CONTROL)
    cold, peer, control = (ledger.median_ttft_ms(traffic.legs, leg) or 0.0 for leg in legs)
    times = f"peer {peer:.0f} ms, cold {cold:.0f} ms on prefill and {control:.0f} ms on decode"
    found = f"{verdict.sentence}: {times}"
    if verdict.verdict == "worth it":
        return Passed(found)
    return Failed(
        "a pulled prompt's first token comes sooner than a computed one's",
        found,
        ("decode",),
        'make verify ARGS="--prompt-tokens N" with longer prompts, or make bench',
    )
