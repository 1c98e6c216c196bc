"""benchmarks/growth.py and client_overhead.py: what they write, and that they run; no time is asserted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kvshare import records
from tests.unit.bench_build import document


@pytest.fixture
def growth(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import growth

    yield growth
    for name in ("growth", "rig_growth", "client_overhead"):
        sys.modules.pop(name, None)


def test_the_section_has_a_row_for_each_point(growth: ModuleType) -> None:
    found = json.loads(records.dumps(document()))
    client = {"streams": 64, "cpu_ms": 0.08, "p50_ms": 0.13}
    lines = growth.section({"lengths": found, "loads": found, "client": client})
    assert lines.count("| tokens | cold | local-prefix | local-lmcache | peer | recompute |") == 1
    assert sum(line.startswith("| 1,034 | 1052 ± 21 |") for line in lines) == 1
    assert any("beside a link of 1.50 GB/s" in line for line in lines)
    assert "0.080 ms a token" in lines[-1]


def test_the_client_is_measured_against_a_server_that_computes_nothing(growth: ModuleType) -> None:
    found = growth.client_overhead.measure(streams=4, tokens=5, gap_s=0.005)
    assert (found["streams"], found["tokens"]) == (4, 20)
    assert found["cpu_ms"] > 0
    assert found["p50_ms"] > 0


@pytest.mark.usefixtures("growth")
def test_links_and_nodes_have_a_row_for_each_point() -> None:
    import rig_growth

    found = json.loads(records.dumps(document()))
    lines = rig_growth.section(
        {"links": {"10": found, "0": found}, "nodes": {"2": {"recompute": 200.0, "peer": 50.0}}}
    )
    points = len(found["points"])
    assert sum(line.startswith("| 10 Gbit/s |") for line in lines) == points
    assert sum(line.startswith("| no limit |") for line in lines) == points
    assert lines[-1] == "| 2 | 200 | 50 | 0.25 |"
    assert rig_growth.section({}) == []
