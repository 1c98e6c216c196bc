"""A worker of another LMCache version, or without the patches: named, never silently without a hit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.rig import engines
from tests.rig.network import DECODE
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import Stack
from tests.scenarios.under_faults.traffic import Traffic

HERE = Path(__file__).parent
METADATA = "/opt/venv/lib/python3.11/site-packages/lmcache-0.5.6.dist-info/METADATA"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def another_version() -> None:
    """What the overlay puts into decode: an LMCache that calls itself 0.5.5, and no record of patches."""
    folder = ROOT / ".kvshare/scenarios"
    folder.mkdir(parents=True, exist_ok=True)
    text = engines.docker(DECODE, "run", "--rm", "--entrypoint=cat", engines.IMAGES[0], METADATA)
    assert text.count("\nVersion: 0.5.6\n") == 1
    (folder / "METADATA").write_text(text.replace("\nVersion: 0.5.6\n", "\nVersion: 0.5.5\n"))
    (folder / "patches.json").write_text(json.dumps([]))


@pytest.mark.usefixtures("another_version")
def test_another_version_and_missing_patches_are_named(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures]
) -> None:
    stack.up(HERE / "overlay.yaml", node="decode")
    outcome = stack.verify()
    named = outcome.failed_ids()
    record(
        figures.of(
            HERE,
            "decode unpatched and of another LMCache",
            1,
            traffic.sent,
            notes={"named": ", ".join(named)},
        )
    )
    assert outcome.code == 1, outcome.said
    assert {"IMG-02", "CONF-08"} <= set(named)
