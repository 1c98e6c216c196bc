"""message-defaults: an old worker registers with a patched controller, and not with an unpatched one."""

from __future__ import annotations

from tests.patches.upstream import Probe, patched_files, without, without_hunks


def test_an_unpatched_controller_refuses_an_old_worker(probe: Probe) -> None:
    result = probe("message-defaults", without("message-defaults"))
    assert result.returncode == 1
    assert "message-defaults: FAILED. ProbeError: A RegisterMsg without peer_init_url" in result.stderr
    assert "Object missing required field `peer_init_url`" in result.stderr


def test_without_its_second_hunk_heartbeats_are_refused(probe: Probe) -> None:
    half = without_hunks("message-defaults", lambda _, hunk: "Heartbeat from" in "".join(hunk.new))
    result = probe("message-defaults", half)
    assert result.returncode == 1
    assert "message-defaults: FAILED. ProbeError: A HeartbeatMsg without peer_init_url" in result.stderr


def test_a_patched_controller_registers_an_old_worker(probe: Probe) -> None:
    result = probe("message-defaults", patched_files())
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["message-defaults: ok"]), (
        result.stderr
    )
