"""Eight clients, prompts worth many times the cache: it evicts, and every answer is right."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

import pytest

from tests.rig.engines import PAIR
from tests.scenarios.under_faults import figures
from tests.scenarios.under_faults.figures import Figures
from tests.scenarios.under_faults.machines import CACHE_CHUNKS, HOST_OF, Stack
from tests.scenarios.under_faults.traffic import CHUNK, Traffic

HERE = Path(__file__).parent
CLIENTS, TOKENS = 8, 522
SECONDS, SECONDS_LONG = 12, 1800
PATIENCE_S = 240  # beyond that time, until the caches are full
WARM_SHARE = 1 / 6  # of the time, after which memory is first looked at: 5 of 30 minutes
TIMES_THE_CACHE, TIMES_THE_CACHE_LONG = 1, 5
GROWTH = 1.05
SERVERS = ("prefill", "decode")
STEP_TOKENS = 512  # as short_steps.yaml has it

pytestmark = pytest.mark.timeout(2700)


def test_load_beyond_memory_evicts_and_stays_right(
    stack: Stack, traffic: Traffic, record: Callable[[Figures], Figures], long: bool
) -> None:
    seconds, wanted = (SECONDS_LONG, TIMES_THE_CACHE_LONG) if long else (SECONDS, TIMES_THE_CACHE)
    if long:
        stack.up(HERE / "short_steps.yaml")
        traffic.meet_every_length(STEP_TOKENS)
    before = {host: traffic.sources(host) for host in PAIR}
    given_up = {host: traffic.evicted(host) for host in PAIR}

    def evicted() -> list[int]:
        return [traffic.evicted(host) - given_up[host] for host in PAIR]

    with stack.survivors(*HOST_OF), traffic.mixed(CLIENTS, TOKENS):
        time.sleep(seconds * WARM_SHARE)
        warm = {service: stack.memory_bytes(service) for service in SERVERS}
        time.sleep(seconds * (1 - WARM_SHARE))
        wait_until(lambda: stored(traffic) >= wanted and all(evicted()), PATIENCE_S)
        end = {service: stack.memory_bytes(service) for service in SERVERS}
    moved = {host: traffic.sources(host) - before[host] for host in PAIR}
    gone = evicted()
    grown = max(end[service] / warm[service] for service in SERVERS)
    notes = {
        "stored": f"{stored(traffic):.1f} times a cache",
        "evicted": f"{sum(gone)} keys",
        "pulled": f"{sum(one.external_kv_transfer for one in moved.values())} tokens",
        "memory": f"{grown:.2f} times that after {seconds * WARM_SHARE / 60:.2g} minutes",
    }
    notes |= {f"TTFT of {kind}": p50_p99(traffic, kind) for kind in ("miss", "peer hit", "again")}
    variant = f"{CLIENTS} clients, {seconds / 60:g} minutes"
    seen = record(figures.of(HERE, variant, 1, traffic.sent, notes=notes))
    assert seen.failures == seen.wrong == 0, traffic.faulty()
    assert all(one.external_kv_transfer for one in moved.values()), moved
    assert stored(traffic) >= wanted, "less was computed than the scenario is for"
    assert all(gone), "a cache was never full"
    if long:
        assert grown <= GROWTH, (warm, end)


def stored(traffic: Traffic) -> float:
    """What was computed and stored, in caches of one server."""
    return sum(one.kind == "miss" for one in traffic.sent) * (TOKENS // CHUNK) / CACHE_CHUNKS


def wait_until(happened: Callable[[], bool], patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not happened() and time.monotonic() < end:
        time.sleep(1)


def p50_p99(traffic: Traffic, kind: str) -> str:
    waits = [one.waited_s * 1000 for one in traffic.sent if one.kind == kind]
    percentiles = quantiles(waits, n=100, method="inclusive")
    return f"p50 {percentiles[49]:.0f} and p99 {percentiles[98]:.0f} ms"
