"""Each cure that keeps requests from harm, taken out of both servers: the oracle must see what it cures."""

import itertools
import re
from collections.abc import Callable

import pytest

from tests.scenarios.under_faults.figures import WITHOUT, Figures
from tests.scenarios.under_traffic.conftest import PAIR, SEED
from tests.scenarios.under_traffic.cures import CURES, Cure, overlay_without
from tests.scenarios.under_traffic.oracle import Oracle
from tests.scenarios.under_traffic.requests import BURST_EVERY, draw_case

CASES = 10  # of six waves; the last of them more than a server's memory holds

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("cure", CURES, ids=lambda cure: cure.name)
def test_the_oracle_sees_what_a_cure_is_for(
    oracle: Oracle,
    images: dict[str, str],
    long: bool,
    record: Callable[[Figures], Figures],
    cure: Cure,
) -> None:
    if not long:
        pytest.skip("a restart of both servers: make test-faults")
    oracle.rig.use(overlay_without(images["prefill"], cure), **PAIR)
    before = len(oracle.played)
    seen = next(filter(None, (see(oracle, cure, SEED + number) for number in range(CASES))), None)
    requests = len(oracle.played) - before
    assert seen is not None, f"{requests} requests without {cure.name}, and nothing seen"
    record(Figures(WITHOUT, cure.name, 1, requests, failures=0, wrong=0, notes={"said": seen}))


def see(oracle: Oracle, cure: Cure, seed: int) -> str | None:
    """Play a case; return what was said of the fault, if anything."""
    problems = oracle.play(draw_case(seed, BURST_EVERY), enough=cure.is_seen_by)
    sentences = [one.sentence for one in problems if cure.is_seen_by(one)]
    causes = (one for one in oracle.causes() if re.search(cure.said, one))
    return next(itertools.chain(sentences, causes), None)
