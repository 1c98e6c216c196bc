"""Whether the client container brought evidence."""

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("client")


@CHECKS.check("CLIENT-01", "the client container ran and reported")
def _client_ran(evidence: Evidence) -> Outcome:
    """It runs on the prefill node's engine; everything below is judged from what it saw.

    Its own words stand above the report. `make image` if its image is missing.
    """
    if evidence.traffic is not None:
        return Passed(f"{evidence.traffic.seconds:.0f} s")
    if evidence.client_error is None:
        return NotChecked("no check of this run needs traffic")
    return Failed("evidence from the client container", evidence.client_error, (), "make status")
