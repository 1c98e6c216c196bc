"""Whether decode answers."""

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.verify.checks.shared import answers, leg_found, logs, traffic_of
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("decode")


@CHECKS.check("DEC-01", "the decode server answers", ("CLIENT-01",))
def _decode_up(evidence: Evidence) -> Outcome:
    """As PRE-01. `make up NODE=decode` starts it."""
    return answers(evidence, "decode")


@CHECKS.check("DEC-02", "it answers every request", ("DEC-01",))
def _decode_answers(evidence: Evidence) -> Outcome:
    """To the end. An engine that died says why in its log's last lines."""
    legs = [leg for leg in traffic_of(evidence).legs if leg.node == "decode"]
    bad = [leg for leg in legs if leg.error is not None]
    if not legs:
        return NotChecked("no request was sent to decode")
    if not bad:
        return Passed(f"{len(legs)} of {len(legs)}")
    found = f"{len(legs) - len(bad)}; {leg_found(bad[0])}"
    return Failed(f"{len(legs)} answers", found, ("decode",), logs(evidence, "decode"))
