"""What the unit tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from kvshare.site.engine import engine
from kvshare.verify.evidence import Spec
from tests.unit.fake_docker import FakeDocker
from tests.unit.fake_stack import FakeStack, serve

# A busy machine is not a failure, and a failure is to be the same on the next run.
settings.register_profile("kvshare", deadline=None, derandomize=True)
settings.load_profile("kvshare")


@pytest.fixture
def fake_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDocker]:
    """Engines `default` (prefill's) and `gpu-b` (decode's), behind a `docker` command of its own."""
    fake = FakeDocker(tmp_path)
    for context in ("default", "gpu-b"):
        fake.engine(context)
    monkeypatch.setenv("PATH", fake.path)
    engine.cache_clear()
    yield fake
    engine.cache_clear()
    fake.close()


@pytest.fixture
def stack() -> FakeStack:
    """Stand-ins for the servers and the controller."""
    return FakeStack()


@pytest.fixture
def spec(stack: FakeStack) -> Iterator[Spec]:
    """A verification of them, while they serve."""
    with serve(stack) as spec:
        yield spec
