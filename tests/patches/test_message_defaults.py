"""message-defaults: an old worker registers with a patched controller, and not with an unpatched one."""

from __future__ import annotations

from message_defaults import PATCH
from upstream import Probe, after, before


def test_an_unpatched_controller_refuses_an_old_worker(probe: Probe) -> None:
    result = probe("message-defaults", PATCH, before(PATCH))
    assert result.returncode == 1
    assert "message-defaults: FAILED. ProbeError: A RegisterMsg without peer_init_url" in result.stderr
    assert "Object missing required field `peer_init_url`" in result.stderr


def test_without_the_second_replacement_heartbeats_are_refused(probe: Probe) -> None:
    second = PATCH.replacements[1]
    half_patched = after(PATCH).decode().replace(second.new, second.old).encode()
    result = probe("message-defaults", PATCH, half_patched)
    assert result.returncode == 1
    assert "message-defaults: FAILED. ProbeError: A HeartbeatMsg without peer_init_url" in result.stderr


def test_a_patched_controller_registers_an_old_worker(probe: Probe) -> None:
    result = probe("message-defaults", PATCH, after(PATCH))
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["message-defaults: ok"]), (
        result.stderr
    )
