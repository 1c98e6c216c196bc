"""pull-loop: bad messages end no loop of the controller; unpatched, each of them can be ended."""

from __future__ import annotations

import pytest

from tests.patches.upstream import Probe, patched_files, without, without_hunks


def test_an_unpatched_controller_registers_nobody_after_bad_messages(probe: Probe) -> None:
    result = probe("pull-loop", without("pull-loop"))
    assert result.returncode == 1
    assert "After bad messages on the reply socket no worker can register" in result.stderr


@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [
        (("_handle_pushed",), "After bad messages on the pull socket no key is admitted."),
        (
            ("a heartbeat of", "is no heartbeat"),
            "After bad messages on the heartbeat socket a heartbeat gets",
        ),
    ],
    ids=["pull", "heartbeat"],
)
def test_each_loop_needs_its_part(probe: Probe, left_out: tuple[str, ...], sentence: str) -> None:
    part = without_hunks("pull-loop", lambda _, hunk: any(text in "".join(hunk.new) for text in left_out))
    result = probe("pull-loop", part)
    assert result.returncode == 1
    assert sentence in result.stderr


def test_a_patched_controller_works_after_bad_messages(probe: Probe) -> None:
    result = probe("pull-loop", patched_files())
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["pull-loop: ok"]), result.stderr
