"""What `kvshare top` shows of a real stack's scrape, and of the same a little later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prometheus_client.samples import Sample
from rich.console import Console

from kvshare.config.settings import Settings
from kvshare.site.base import State
from kvshare.site.containers import Containers
from kvshare.stack.members import Stack
from kvshare.watch.top import Look, frame, look
from tests.conftest import ROOT
from tests.unit import scrape
from tests.unit.build import STACK, WATCHED
from tests.unit.fake_docker import FakeDocker
from tests.unit.multiprocess_build import BESIDE, OWNER

GOLDEN = Path(__file__).parent / "golden"
WELL = {member.name: State(member.name, "running", "healthy") for member in WATCHED.members}


def later(rises: Mapping[tuple[str, str], float]) -> dict[str, tuple[Sample, ...]]:
    """The scrape with some of its counters higher."""
    return {
        node: tuple(
            valued(sample, sample.value + rises.get((node, sample.labels.get("source", sample.name)), 0.0))
            for sample in samples
        )
        for node, samples in scrape.by_member().items()
    }


def valued(sample: Sample, value: float) -> Sample:
    return sample._replace(value=value)


def shown(before: Look, now: Look, stack: Stack = WATCHED) -> str:
    console = Console(width=150, no_color=True)
    with console.capture() as captured:
        console.print(frame(stack, before, now))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def test_what_happened_between_two_looks(update_golden: bool) -> None:
    now = later(
        {
            ("decode", "local_compute"): 100,
            ("decode", "external_kv_transfer"): 10_240,
            ("prefill", "local_compute"): 10_340,
            ("prefill", "local_cache_hit"): 512,
            ("prefill", "lmcache:p2p_time_to_transfer_count"): 4,
            ("prefill", "lmcache:p2p_time_to_transfer_sum"): 0.08,
            ("prefill", "lmcache:p2p_transfer_speed_sum"): 4 * 128_000,
            ("decode", "vllm:num_requests_running"): 3,
        }
    )
    text = shown(Look(100.0, scrape.by_member(), WELL), Look(102.0, now, WELL))
    path = GOLDEN / "top.txt"
    if update_golden:
        path.write_text(text)
    assert text == path.read_text()


def test_each_pair_is_named_with_what_it_pulled() -> None:
    url, name = WATCHED.prefill.peer_init_urls[0], "lmcache:pulled_bytes_total"

    def pulled(value: float) -> dict[str, tuple[Sample, ...]]:
        found = scrape.by_member()
        return {**found, "decode": (*found["decode"], Sample(name, {"peer": url}, value))}

    first = shown(Look(100.0, scrape.by_member(), WELL), Look(102.0, pulled(1e6), WELL))
    assert "decode pulls 0.5 MB/s from prefill" in first
    then = shown(Look(100.0, pulled(1e6), WELL), Look(102.0, pulled(21e6), WELL))
    assert "decode pulls 10.0 MB/s from prefill" in then
    assert "prefill pulls" not in then


def test_cache_servers_say_what_they_pulled_and_how_full_they_are() -> None:
    def said(pulled: float) -> dict[str, tuple[Sample, ...]]:
        return {
            "coordinator": (),
            "decode-cache": (
                Sample("lmcache_mp_p2p_pulled_bytes_total", {"peer": OWNER}, pulled),
                Sample("lmcache_mp_l1_usage_ratio", {}, 0.25),
            ),
        }

    text = shown(Look(100.0, said(1e6)), Look(102.0, said(21e6)), BESIDE)
    assert "decode-cache pulls 10.0 MB/s from prefill-cache" in text
    assert "decode-cache   absent" in text
    assert text.splitlines()[3].endswith("25%")
    assert "does not answer" not in text
    assert "the coordinator does not answer" in shown(Look(100.0), Look(102.0), BESIDE)


def test_what_does_not_answer_leaves_gaps_and_says_so() -> None:
    states = {**WELL, "decode": State("decode", "running", "unhealthy")}
    del states["gateway"]
    text = shown(Look(100.0, scrape.by_member(), WELL), Look(102.0, {}, states))
    assert [line.split() for line in text.splitlines()[1:6]] == [
        ["controller", "healthy"],
        ["prefill", "healthy"],
        ["decode", "unhealthy"],
        ["gateway", "absent"],
        ["prometheus", "healthy"],
    ]
    assert "the controller does not answer" in text


def test_a_server_that_was_started_anew_shows_no_negative_rate() -> None:
    fresh = {
        node: tuple(valued(sample, 0.0) for sample in samples) for node, samples in scrape.by_member().items()
    }
    assert "-" not in shown(Look(100.0, scrape.by_member(), WELL), Look(102.0, fresh, WELL)).replace(
        "not synced", ""
    )


def test_a_look_asks_each_member_that_runs(fake_docker: FakeDocker) -> None:
    for context, name in (("default", "controller"), ("default", "prefill"), ("gpu-b", "decode")):
        fake_docker.add_container(context, name)
    said = {f"{m.url}/metrics": (scrape.FOLDER / f"{m.name}.prom").read_text() for m in STACK.engines}
    fake_docker.answers("default", **said, **{"/metrics": said[f"{STACK.controller.url}/metrics"]})
    seen = look(Containers(STACK, Settings(ROOT, {})))
    assert set(seen.states) == {"controller", "prefill", "decode"}
    assert seen.total("prefill", "vllm:prompt_tokens_by_source_total", source="local_cache_hit") is not None
    assert seen.total("controller", "lmcache:cache_controller_registered_workers_count") is not None
    assert "decode" not in seen.samples, "its engine answers nothing here"
