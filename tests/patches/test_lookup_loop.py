"""lookup-loop: an answer from the controller reaches the loop that asked; unpatched, not always."""

from __future__ import annotations

from tests.patches.upstream import Probe, patched_files, without


def test_an_unpatched_worker_loses_an_answer(probe: Probe) -> None:
    result = probe("lookup-loop", without("lookup-loop"))
    assert result.returncode == 1
    assert "did not wake up" in result.stderr


def test_a_patched_worker_gets_every_answer(probe: Probe) -> None:
    result = probe("lookup-loop", patched_files())
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["lookup-loop: ok"]), result.stderr
