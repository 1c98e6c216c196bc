"""progress-delay: an idle NIXL agent leaves the CPU alone once patched, and not before."""

from __future__ import annotations

from guard.series import find

from tests.patches.upstream import EVERY, Probe, original

PATH = "nixl_cu13/_api.py"
BEFORE = original(PATH, "nixl-cu13") or ""
AFTER = find(EVERY.values(), "progress-delay").applied(PATH, BEFORE.encode()) or b""


def test_an_unpatched_agent_keeps_a_core_busy(probe: Probe) -> None:
    result = probe("progress-delay", {PATH: BEFORE})
    assert result.returncode == 1
    assert (
        "progress-delay: FAILED. ProbeError: An idle NIXL agent should leave the CPU alone" in result.stderr
    )


def test_a_patched_agent_is_idle_when_it_has_nothing_to_do(probe: Probe) -> None:
    result = probe("progress-delay", {PATH: AFTER.decode()})
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["progress-delay: ok"]), result.stderr
