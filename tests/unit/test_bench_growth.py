"""benchmarks/cpu and benchmarks/rig: what they write, and that they run; no time is asserted."""

from __future__ import annotations

from benchmarks import orders
from benchmarks.cpu import client_overhead, growth, under_load
from benchmarks.rig import links_and_nodes, never_slower
from benchmarks.summary import summary
from tests.unit.bench_build import document


def test_the_section_has_a_row_for_each_point() -> None:
    found = summary(document())
    client = {"streams": 64, "cpu_ms": 0.08, "p50_ms": 0.13}
    lines = growth.section({"lengths": found, "loads": found, "client": client})
    assert lines.count("| tokens | cold | local-prefix | local-lmcache | peer | recompute |") == 1
    assert sum(line.startswith("| 1,034 | 1052 ± 21 |") for line in lines) == 1
    assert any("beside a link of 1.50 GB/s" in line for line in lines)
    assert "0.080 ms a token" in lines[-1]


def test_the_client_is_measured_against_a_server_that_computes_nothing() -> None:
    found = client_overhead.measure(streams=4, tokens=5, gap_s=0.005)
    assert (found["streams"], found["tokens"]) == (4, 20)
    assert found["cpu_ms"] > 0
    assert found["p50_ms"] > 0


def test_links_and_nodes_have_a_row_for_each_point() -> None:
    found = summary(document())
    lines = links_and_nodes.links({"10": found, "0": found})
    points = len(found["points"])
    assert sum(line.startswith("| 10 Gbit/s |") for line in lines) == points
    assert sum(line.startswith("| no limit |") for line in lines) == points
    lines = links_and_nodes.nodes({"2": {"recompute": 200.0, "peer": 50.0}})
    assert lines[-1] == "| 2 | 200 | 50 | 0.25 |"


def test_requests_under_load_are_kept_apart_by_the_arm_that_went_first() -> None:
    lines = []
    for repetition, arms in enumerate((("cold", "peer", "recompute"), ("recompute", "cold", "peer"))):
        for arm in arms:
            for sent_s in (0.0, 1.0):
                ttft_ms = {"peer": 50.0, "recompute": 100.0}.get(arm, 1.0) * (1 + repetition)
                lines.append(
                    {"repetition": repetition, "arm": arm, "counted": True, "sent_s": sent_s}
                    | {"ttft_ms": ttft_ms, "tpot_ms": 9.0, "e2e_ms": 1000.0, "output_tokens": 16}
                )
    found = orders.by_order(lines)
    assert found["peer"]["peer"] == {
        "ttft_ms": 50.0,
        "ttft_p99_ms": 50.0,
        "tpot_ms": 9.0,
        "request_throughput": 1.0,
        "output_throughput": 16.0,
    }
    assert found["recompute"]["recompute"]["ttft_ms"] == 200.0
    assert "| recompute | 100.0 / 200.0 = 0.50 | 100.0 / 200.0 = 0.50 | 1.0 / 1.0 = 1.00 |" in (
        under_load.section(found)
    )


def test_each_length_of_each_link_has_its_ratio_before_and_after_the_threshold() -> None:
    ended = {"ratio": 1.5, "interval": (1.4, 1.6)}, {"ratio": 0.25, "interval": (0.2, 0.3)}
    measured = [
        {"tokens": 266, "peer_ms": 90.0, "recompute_ms": 60.0, "pulled": False, **ended[0]},
        {"tokens": 522, "peer_ms": 30.0, "recompute_ms": 120.0, "pulled": True, **ended[1]},
    ]
    lines = never_slower.section({"300": {"threshold": "512", "before": measured, "after": measured}})
    assert lines[-2:] == [
        "| 300 Mbit/s | 512 | 266 | 1.50 | declined | 90 | 60 | 1.50 (1.40–1.60) |",
        "| 300 Mbit/s | 512 | 522 | 0.25 | made | 30 | 120 | 0.25 (0.20–0.30) |",
    ]
