"""pull-loop: bad messages end no loop of the controller; unpatched, each of them can be ended."""

from __future__ import annotations

import pytest
from patch import Replacement
from pull_loop import PATCH
from upstream import Probe, patched_files, without


def test_an_unpatched_controller_registers_nobody_after_bad_messages(probe: Probe) -> None:
    result = probe("pull-loop", PATCH, without(PATCH))
    assert result.returncode == 1
    assert "After bad messages on the reply socket no worker can register" in result.stderr


@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [
        (PATCH.replacements[1:2], "After bad messages on the pull socket no key is admitted."),
        (PATCH.replacements[5:7], "After bad messages on the heartbeat socket a heartbeat gets"),
    ],
    ids=["pull", "heartbeat"],
)
def test_each_loop_needs_its_part(probe: Probe, left_out: tuple[Replacement, ...], sentence: str) -> None:
    result = probe("pull-loop", PATCH, without(PATCH, *left_out))
    assert result.returncode == 1
    assert sentence in result.stderr


def test_a_patched_controller_works_after_bad_messages(probe: Probe) -> None:
    result = probe("pull-loop", PATCH, patched_files())
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["pull-loop: ok"]), result.stderr
