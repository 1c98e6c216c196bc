"""benchmarks/cpu/pulls.py and key_cost.py: what their sections of docs/benchmarks.md say of given figures."""

from __future__ import annotations

from benchmarks.cpu import key_cost, pulls

FOUND = {
    "load_before": 0.5,
    "load_after": 1.25,
    "upstream": {"t0_ms": 10.0, "median_ms": {"1024": 12.0}, "least_ms": {"1024": 11.0}},
    "uncounted": {"t0_ms": 3.9, "median_ms": {"1024": 5.9}, "least_ms": {"1024": 4.9}},
    "ours": {"t0_ms": 4.0, "median_ms": {"1024": 6.04}, "least_ms": {"1024": 5.0}},
    "first_over_second": [1.0, 1.5, 1.2],
}


def test_the_section_has_both_costs_their_ratio_and_the_load() -> None:
    text = "\n".join(pulls.section(FOUND))
    assert "Load average 0.5 before, 1.2 after" in text
    assert "| 10 ms, upstream's | no | 10.0 ms | 12.0 ms | 11.0 ms |" in text
    assert "| configs/lmcache.yaml | no | 3.9 ms | 5.9 ms | 4.9 ms |" in text
    assert "| configs/lmcache.yaml | yes | 4.0 ms | 6.0 ms | 5.0 ms |" in text
    assert "ours over upstream's: 0.40. First pull" in text
    assert "median (worst) of 3 pairs: 1.20 (1.50)" in text


def test_the_section_about_the_key_has_both_ways_and_their_ratio() -> None:
    without = {"lookup_ms": 2.0, "pull_ms": 4.0, "t0_ms": 3.0}
    found = {
        **{"without": without, "with": {"lookup_ms": 2.04, "pull_ms": 4.1, "t0_ms": 3.0}},
        **{"ratio": {"lookup_ms": 1.02, "pull_ms": 1.025, "t0_ms": 1.0}, "rounds": 9},
        **{"load_before": 0.5, "load_after": 1.25},
    }
    text = "\n".join(key_cost.section(found))
    assert "in one run of\n9 rounds" in text
    assert "| a lookup of what nobody holds | 2.00 ms | 2.04 ms | 1.020 |" in text
    assert "| its fixed part, fitted | 3.00 ms | 3.00 ms | 1.000 |" in text
