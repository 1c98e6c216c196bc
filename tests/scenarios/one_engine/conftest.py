"""The stack on this machine's own Docker engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenarios.conftest import Rig, on_this_machine


@pytest.fixture(scope="package")
def rig(images: dict[str, str]) -> Iterator[Rig]:
    """The stack on images of this tree."""
    del images
    with on_this_machine() as rig:
        yield rig
