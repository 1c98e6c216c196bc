"""registration: a worker finds a controller that starts late; unpatched, never."""

from __future__ import annotations

import pytest

from tests.patches.upstream import Probe, without


@pytest.mark.slow
def test_an_unpatched_worker_waits_for_a_controller(probe: Probe) -> None:
    result = probe("registration", without("registration"))
    assert result.returncode == 1
    assert "Without a controller a miss took" in result.stderr
