"""SHARING=multiprocess: the same legs, canary and bench, whose ledger is kept by LMCache's own processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvshare.bench import session
from kvshare.bench.observed import Line
from kvshare.bench.run import Options as BenchOptions
from kvshare.bench.run import make_spec as make_bench_spec
from kvshare.bench.spec import ARMS, BenchSpec, Point
from kvshare.config.keys import Keys
from kvshare.contract import Fingerprint
from kvshare.servers import metrics, server, sharing, wait
from kvshare.servers.multiprocess import CacheClient, CacheServers
from kvshare.servers.readings import CacheProbe, Counters, Sources, Wire
from kvshare.servers.server import ServerClient
from kvshare.verify import canary, legs
from kvshare.verify.canary import Pair, State
from kvshare.verify.evidence import CONTROL, PEER, Spec, Traffic
from kvshare.verify.ledger import of
from kvshare.verify.run import Options, make_spec
from tests.unit.build import KV_BYTES
from tests.unit.fake_caches import ADDRESSES, FakeCaches, beside
from tests.unit.fake_stack import CHUNK, FakeStack
from tests.unit.multiprocess_build import BESIDE
from tests.unit.multiprocess_build import beside as beside_evidence

RECORDED = Path(__file__).parent / "recorded"
OBJECT = 6_553_600  # bytes
Run = Callable[..., Traffic]


@pytest.fixture
def caches(stack: FakeStack) -> FakeCaches:
    return FakeCaches(stack)


@pytest.fixture
def spec(spec: Spec, caches: FakeCaches) -> Iterator[Spec]:
    with beside(caches, spec) as task:
        yield task


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (legs, "FLUSH_S"),
        (sharing, "FLUSH_S"),
        (legs, "ADMISSION_DEADLINE_S"),
        (legs, "AFTER_A_MISS_S"),
        (canary, "ADMISSION_DEADLINE_S"),
        (session, "ADMISSION_DEADLINE_S"),
        (canary, "EXPORT_DEADLINE_S"),
        (sharing, "EXPORT_DEADLINE_S"),
        (server, "WIRE_DEADLINE_S"),
    ):
        monkeypatch.setattr(module, name, 0.05)
    monkeypatch.setattr(wait, "POLL_S", 0.01)


@pytest.fixture
def run(spec: Spec) -> Run:
    return lambda **changes: legs.run(replace(spec, **changes), Keys(), lambda _: None)


# --- what the real ones say ---------------------------------------------------------------------------------


class Replayed(CacheClient):
    """A cache server that says what one said after a verification of three prompts of six chunks."""

    def __init__(self, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("http://cache")
        paths = {"/status": f"{node}-cache-status.json", "/metrics": f"{node}-cache.prom"}
        monkeypatch.setattr(self.http, "get", lambda path, **_: (RECORDED / paths[path]).read_text())


def test_a_cache_server_tells_its_peers_and_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Replayed("decode", monkeypatch)
    held = 24 * OBJECT
    assert decode.probe() == CacheProbe(True, None, "registered", ("127.0.0.1:8200",), 24, held, 0)
    assert Replayed("prefill", monkeypatch).stored() == 23, "five more of a prompt that was changed in one"


def test_a_servers_ledger_is_its_cache_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = ServerClient("http://decode", cache=Replayed("decode", monkeypatch))
    monkeypatch.setattr(decode.http, "get", lambda *_, **__: "vllm:num_requests_running 1.0")
    reading = decode.read()
    assert reading is not None
    assert reading.counters == Counters(hit_tokens=3 * 1536, requested_tokens=4 * 1536, transfers=1)
    assert decode.object_bytes() == OBJECT
    held = decode.held()
    assert held is not None
    assert (held.running, held.pinned) == (1, 0)


def test_who_handed_out_and_who_read_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics.counters(Replayed("prefill", monkeypatch).samples()).transfers == 18
    caches = CacheServers("http://coordinator", {}, CHUNK)
    caches.caches = {"decode": Replayed("decode", monkeypatch)}
    assert caches.pulled() == {"127.0.0.1:8200": 18 * OBJECT}


@pytest.mark.parametrize(("node", "moved"), [("prefill", 0), ("decode", 18 * OBJECT)])
def test_nixl_counts_a_pull_where_it_is_read(node: str, moved: int) -> None:
    assert metrics.wire(metrics.parse((RECORDED / f"{node}-nixl.prom").read_text())) == Wire(bytes=moved)


def test_the_coordinator_lists_cache_servers_by_the_address_that_peers_read_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caches = CacheServers("http://coordinator", {}, CHUNK)
    monkeypatch.setattr(caches.http, "get", lambda _: (RECORDED / "instances.json").read_text())
    assert {worker.instance for worker in caches.probe().workers} == {"127.0.0.1:8200", "127.0.0.1:8201"}


def test_a_task_names_the_cache_servers_and_where_nixl_counts() -> None:
    task = make_spec(BESIDE, beside_evidence().containers, Options(), 0.0)
    assert (task.prefill_instance, task.decode_instance) == ("192.168.110.13:8200", "192.168.110.97:8202")
    assert task.caches == {"prefill": "http://192.168.110.13:8201", "decode": "http://192.168.110.97:8203"}
    assert task.controller == "http://192.168.110.13:9000"
    assert task.nixl == "", "decode's counts for its own machine alone, and the client is on another"
    here = replace(BESIDE, decodes=(replace(BESIDE.decode, context=BESIDE.prefill.context),))
    assert make_spec(here, beside_evidence().containers, Options(), 0.0).nixl == "http://127.0.0.1:8205"
    bench = make_bench_spec(BESIDE, Fingerprint("prefill"), BenchOptions())
    assert (bench.prefill_instance, bench.caches) == (task.prefill_instance, task.caches)


# --- legs, canary and bench ---------------------------------------------------------------------------------


def test_every_leg_is_accounted_for_by_the_cache_servers(run: Run) -> None:
    seen = run()
    assert {leg.sources for leg in of(seen.legs, PEER)} == {Sources(10, 0, 512)}
    assert {leg.sources for leg in of(seen.legs, CONTROL)} == {Sources(522, 0, 0)}
    assert {(a.expected_keys, a.new_keys, a.how) for a in seen.admissions} == {(2, 2, "stored")}
    for at, transfers in ((seen.owner_start, 0), (seen.owner_after_control, 0), (seen.owner_end, 3 * 2)):
        assert at is not None
        assert at.transfers == transfers
    assert seen.decode_end is not None
    assert seen.decode_end.hit_tokens == 3 * 512
    assert seen.wire == Wire(bytes=3 * 512 * KV_BYTES)
    assert seen.chunk_bytes == CHUNK * KV_BYTES
    assert {node: cache.peers for node, cache in seen.controller.caches.items()} == {
        "prefill": (ADDRESSES["decode"],),
        "decode": (ADDRESSES["prefill"],),
    }


def test_what_prefill_does_not_store_is_not_admitted(run: Run, stack: FakeStack) -> None:
    stack.pull_loop_alive = False
    assert {a.how for a in run().admissions} == {""}


def test_cache_servers_that_do_not_know_each_other_are_waited_for(
    spec: Spec, caches: FakeCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = CacheServers(spec.controller, spec.caches, CHUNK)
    met = asked.probe()
    caches.peers = {"prefill": (), "decode": (ADDRESSES["prefill"],)}
    caches.peers["prefill"] = ("127.0.0.1:1",)
    unmet = asked.probe()
    caches.listed = caches.listed[:1]
    unlisted = asked.probe()
    answers = iter([unlisted, unmet, met])
    monkeypatch.setattr(asked, "probe", lambda: next(answers))
    assert asked.await_workers(ADDRESSES.values(), 5) == met


def test_a_coordinator_and_caches_that_are_down_are_evidence(run: Run, caches: FakeCaches) -> None:
    caches.up = False
    seen = run()
    assert not seen.controller.answers
    assert "503" in str(seen.controller.error)
    assert not any(cache.answers for cache in seen.controller.caches.values())
    assert len(seen.legs) == 11


def test_what_lmcache_holds_for_requests_is_its_cache_servers(spec: Spec, caches: FakeCaches) -> None:
    decode = sharing.servers_of(spec, Keys())["decode"]
    caches.locked = 2
    held = decode.held()
    assert held is not None
    assert held.pinned == 2
    caches.up = False
    assert decode.held() is None


def test_a_cache_server_that_tells_something_else_is_no_cache(spec: Spec) -> None:
    probe = CacheClient(spec.prefill).probe()
    assert not probe.answers
    assert probe.error == f"{spec.prefill}/status tells of no cache"


@pytest.fixture
def pair(spec: Spec) -> Pair:
    where = (spec.prefill, spec.decode, spec.controller, spec.prefill_instance)
    return Pair(*where, dtype="float32", caches=spec.caches)


def test_a_canary_is_proven_by_the_cache_servers(pair: Pair) -> None:
    assert canary.look(pair, Keys(), seed=1).state == State.PROVEN


def test_a_canary_whose_kv_is_not_stored_says_so(pair: Pair, stack: FakeStack) -> None:
    stack.pull_loop_alive = False
    found = canary.look(pair, Keys(), seed=1)
    assert (found.state, found.sentence) == (
        State.COMPUTED,
        "prefill's cache server did not store what prefill has just computed.",
    )


def test_a_canary_whose_kv_nobody_handed_out_is_none(pair: Pair, caches: FakeCaches) -> None:
    caches.counts = False
    assert canary.look(pair, Keys(), seed=1).state == State.UNSENT


def test_a_bench_counts_what_was_handed_out(spec: Spec) -> None:
    task = BenchSpec(
        *(spec.prefill, spec.decode, spec.controller, spec.prefill_instance),
        points=(Point(2 * CHUNK + 10, 4),),
        arms=ARMS,
        repetitions=2,
        chunk_size=CHUNK,
        seed=5,
        caches=spec.caches,
    )
    told: list[Line] = []
    session.run(task, Keys(), told.append, lambda _: None)
    (end,) = (line.point_end for line in told if line.point_end)
    assert end.owner is not None
    assert end.owner.transfers == 2 * 2
    assert all(line.repetition.discarded is None for line in told if line.repetition)
