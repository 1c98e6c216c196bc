"""The stack on this machine's own Docker engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenarios.conftest import Rig


@pytest.fixture(scope="package")
def rig(images: dict[str, str]) -> Iterator[Rig]:
    """The stack on images of this tree; at the end its containers are gone, and the engine still runs.

    So are those of a demo before: an engine starts them again with itself, and Ctrl-C leaves them alone.
    """
    del images
    rig = Rig()
    rig.down()
    yield rig
    rig.down()
