"""`verify --deep`: what its client sends to a stand-in for the stack, and how the checks judge it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest

from kvshare.checking.registry import ERROR, SKIPPED, Result
from kvshare.config.keys import Keys
from kvshare.servers import sharing, wait
from kvshare.servers.prompts import DEFAULT_CHUNK_SIZE
from kvshare.servers.readings import Held, Memory, Sources
from kvshare.verify import checks, deep, legs
from kvshare.verify.deep import CROWD, DeepRun, Request
from kvshare.verify.evidence import (
    ADAPTERS,
    AT_ONCE,
    CHANGED,
    EDGES,
    HUNG_UP,
    PREEMPTED,
    SALTS,
    Deep,
    Evidence,
    Leg,
    Spec,
    Trial,
)
from kvshare.verify.judgement import judge
from tests.unit import build
from tests.unit.build import SPEC, edit, edit_legs, edit_trials, proven
from tests.unit.fake_stack import FakeStack
from tests.unit.faults import all_of, moved

Run = Callable[..., Deep]


@pytest.fixture
def stack() -> FakeStack:
    made = FakeStack()
    made.prefill.first_token_s = made.decode.first_token_s = 0.001
    return made


@pytest.fixture
def run(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> Run:
    for module, name in (
        (legs, "FLUSH_S"),
        (sharing, "FLUSH_S"),
        (legs, "ADMISSION_DEADLINE_S"),
        (deep, "ADMISSION_S"),
        (deep, "AFTER_A_MISS_S"),
        (deep, "QUIET_S"),
    ):
        monkeypatch.setattr(module, name, 0.05)
    monkeypatch.setattr(wait, "POLL_S", 0.01)

    def run(**changes: Any) -> Deep:
        task = replace(spec, prompts=1, deep=True, **changes)
        seen = legs.run(task, Keys(), lambda _: None).deep
        assert seen is not None
        return seen

    return run


def of(seen: Deep, kind: str) -> list[Trial]:
    return [trial for trial in seen.trials if trial.kind == kind]


def pulled(trial: Trial) -> int:
    assert trial.sources is not None
    return trial.sources.external_kv_transfer


def result(evidence: Evidence, identifier: str) -> Result:
    results = judge(evidence, all_of(evidence)).results
    return next(result for result in results if result.check.id == identifier)


# --- what is sent -------------------------------------------------------------------------------------------


def test_everything_is_tried_and_comes_from_where_it_must(run: Run, stack: FakeStack) -> None:
    stack.adapters = ("a", "b", "c")
    seen = run()
    assert {trial.kind for trial in seen.trials} == {EDGES, SALTS, ADAPTERS, AT_ONCE, PREEMPTED, HUNG_UP}
    assert all(trial.due in (None, pulled(trial)) for trial in seen.trials)
    sent = [leg for trial in seen.trials for leg in (*trial.held, *trial.asked, *trial.honest)]
    assert [leg.error for leg in sent if leg.error] == []


def test_prompts_end_at_the_edges_of_chunks(run: Run) -> None:
    tried = [(trial.asked[0].tokens, pulled(trial)) for trial in of(run(), EDGES)]
    assert tried == [
        (255, 0), (256, 255), (257, 256),
        (511, 256), (512, 511), (513, 512),
        (767, 512), (768, 767), (769, 768),
    ]  # fmt: skip


def test_prompts_end_where_the_model_does(run: Run, stack: FakeStack) -> None:
    stack.max_model_len = 600
    assert [trial.asked[0].tokens for trial in of(run(), EDGES)] == [255, 256, 257, 511, 512, 513]


def test_prompts_are_as_long_as_decode_pulls(run: Run, stack: FakeStack) -> None:
    stack.decode.min_tokens = 512
    seen = run(least_chunks=2)
    assert [(one.asked[0].tokens, pulled(one)) for one in of(seen, EDGES)][:3] == [
        (511, 0),
        (512, 511),
        (513, 512),
    ]
    assert [pulled(trial) for trial in of(seen, SALTS)] == [0, 0, 512]


def test_each_adapter_is_asked_what_another_computed(run: Run, stack: FakeStack) -> None:
    stack.adapters = ("a", "b", "c")
    seen = run()
    assert seen.adapters == ("a", "b", "c")
    assert {trial.what: pulled(trial) for trial in of(seen, ADAPTERS)} == {
        f"KV of {owner} for {model}": 256 if owner == model else 0
        for owner in ("m", "a", "b")
        for model in ("m", "a", "b")
    }


def test_without_adapters_none_is_tried(run: Run) -> None:
    seen = run()
    assert seen.adapters == ()
    assert of(seen, ADAPTERS) == []


def test_an_answer_is_computed_anew_under_a_salt_of_its_own(run: Run) -> None:
    anew = [leg for trial in run().trials for leg in trial.honest if leg.leg == "anew"]
    assert {leg.sources for leg in anew} == {Sources(local_compute=leg.tokens) for leg in anew}


@pytest.fixture
def together(stack: FakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests sent at once are at once: each waits for all of them."""
    send = DeepRun._send_at_once

    def met(self: DeepRun, name: str, requests: Sequence[Request]) -> tuple[Leg, ...]:
        stack.decode.meeting = Barrier(len(requests))
        legs = send(self, name, requests)
        stack.decode.meeting = None
        return legs

    monkeypatch.setattr(DeepRun, "_send_at_once", met)


@pytest.mark.usefixtures("together")
def test_a_crowd_comes_at_once(run: Run, stack: FakeStack) -> None:
    stack.decode.memory = (CROWD * 3 - 3, 128)  # of which the last one is too many
    (trial,) = of(run(), AT_ONCE)
    assert stack.decode.preemptions > 0
    assert pulled(trial) == 8 * 256


def test_a_crowd_is_as_large_as_prefill_can_hold(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep, "CROWD_TOKENS", 3 * 266)
    assert [trial.what for trial in of(run(), AT_ONCE)] == ["3 prompts at once"]


@pytest.mark.usefixtures("together")
def test_memory_is_filled_until_requests_have_to_leave_it(run: Run, stack: FakeStack) -> None:
    seen = run()
    assert seen.pressure is not None
    assert (seen.pressure.memory_tokens, seen.pressure.requests, seen.pressure.tokens) == (2560, 8, 352)
    assert seen.pressure.preemptions > 0
    stack.preempts = False
    again = run(seed=2).pressure
    assert again is not None
    assert again.preemptions == 0


def test_memory_that_is_too_much_to_fill_is_left_alone(run: Run, stack: FakeStack) -> None:
    stack.decode.memory = (100_000, 128)
    seen = run()
    assert of(seen, PREEMPTED) == []
    assert seen.pressure is not None
    assert seen.pressure.requests == 0


def test_memory_of_a_server_that_does_not_tell_is_left_alone(run: Run, stack: FakeStack) -> None:
    stack.decode.memory = None
    assert run().pressure is None


@pytest.fixture
def outlasted(stack: FakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that are to hang up do: their answers wait for it."""
    send = DeepRun._send

    def marked(self: DeepRun, name: str, *rest: Any) -> Leg:
        stack.decode.outlasts = name == "cut"
        return send(self, name, *rest)

    monkeypatch.setattr(DeepRun, "_send", marked)


@pytest.mark.usefixtures("outlasted")
def test_clients_hang_up_and_what_stays_behind_is_seen(run: Run, stack: FakeStack) -> None:
    seen = run()
    assert seen.hang_ups is not None
    assert (seen.hang_ups.sent, seen.hang_ups.cut, seen.hang_ups.restarted) == (5, 5, ())
    stack.decode.keeps = True
    found = result(edit(proven(), "traffic.deep", run(seed=2)), "DEEP-06")
    assert found.found.startswith("decode: 5 running")


def test_salts_and_adapters_that_are_ignored_are_seen(run: Run, stack: FakeStack) -> None:
    stack.adapters, stack.knows_identity = ("a",), False
    evidence = edit(proven(), "traffic.deep", run())
    assert (result(evidence, "DEEP-01").result, result(evidence, "DEEP-03").result) == (ERROR, ERROR)
    assert result(evidence, "DEEP-01").found == "KV of one salt for another: 256"


def test_after_the_deadline_nothing_more_is_sent(run: Run) -> None:
    assert all("deadline" in str(leg.error) for trial in run(deadline_s=0.0).trials for leg in trial.asked)


def test_without_deep_nothing_of_it_is_sent(spec: Spec, run: Run) -> None:
    del run  # its short waits
    assert legs.run(replace(spec, prompts=1), Keys(), lambda _: None).deep is None


@pytest.mark.parametrize(
    ("memory", "longest", "expected"),
    [
        (Memory(163, 128, 0), 1600, (864, 25)),  # the demo's
        (Memory(20, 128, 0), 1600, (352, 8)),
        (Memory(26_000, 16, 0), 32_768, (13_832, 32)),
        (Memory(26_000, 16, 0), 4096, (4104, 0)),  # 32 requests do not fill it
        (Memory(2, 128, 0), 1600, (352, 0)),  # it holds no two requests
    ],
)
def test_as_many_requests_as_outgrow_the_memory(
    memory: Memory, longest: int, expected: tuple[int, int]
) -> None:
    tokens, number = deep.pressing(memory, SPEC, longest)
    assert (tokens, number) == expected
    if number:
        grown = -(-(tokens + deep.PRESSED_TOKENS) // memory.block_size)
        fit = number - deep.WAITING
        assert fit * -(-tokens // memory.block_size) < memory.blocks <= fit * grown
    assert tokens > DEFAULT_CHUNK_SIZE


# --- how it is judged ---------------------------------------------------------------------------------------


def test_a_server_without_adapters_needs_no_check_of_them() -> None:
    evidence = edit(
        edit(build.deep(), "traffic.deep.adapters", ()),
        "traffic.deep.trials",
        lambda made: tuple(trial for trial in made if trial.kind != ADAPTERS),
    )
    judgement = judge(evidence, all_of(evidence))
    assert result(evidence, "DEEP-03").detail == (
        "not needed: no adapter is listed in /v1/models of both servers"
    )
    assert (judgement.exit_code, judgement.proven) == (0, True)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (
            "pressure.preemptions",
            0,
            "memory for 20,864 tokens is too much to fill: 25 requests of 864 tokens",
        ),
        ("pressure.requests", 0, "memory for 20,864 tokens is too much to fill"),
        ("pressure", None, "decode's /metrics do not tell how many tokens its memory holds"),
        ("hang_ups.cut", 0, "all of 5 answers ended before their clients hung up"),
        ("trials", (), "its requests were not sent"),
    ],
)
def test_what_could_not_be_brought_about_is_not_called_right(path: str, value: object, reason: str) -> None:
    evidence = edit(build.deep(), f"traffic.deep.{path}", value)
    judgement = judge(evidence, all_of(evidence))
    assert any(one.detail.startswith(f"not checked: {reason}") for one in judgement.unjudged)
    assert (judgement.exit_code, judgement.proven) == (3, False)


def test_a_model_whose_answers_hang_on_nothing_cannot_tell_but_what_is_counted_it_can() -> None:
    alike = edit_legs(build.deep(), CHANGED, moved(0.0))
    assert "cannot tell right KV from wrong" in result(alike, "DEEP-04").detail
    leak = edit_trials(alike, SALTS, lambda trial: replace(trial, sources=Sources(10, 0, 256)))
    assert result(leak, "DEEP-01").result == ERROR


@pytest.mark.parametrize("which", ["held", "asked", "honest"])
def test_a_request_without_an_answer_fails_its_check(which: str) -> None:
    def fail(trial: Trial) -> Trial:
        return replace(trial, **{which: tuple(replace(one, error="503", output=()) for one in trial.asked)})  # type: ignore[arg-type]

    found = result(edit_trials(build.deep(), AT_ONCE, fail), "DEEP-04")
    assert (found.result, found.found) == (ERROR, "8 prompts at once: 503")


def test_what_was_to_be_computed_anew_and_was_not_judges_nothing() -> None:
    def warm(trial: Trial) -> Trial:
        return replace(trial, honest=tuple(replace(one, sources=Sources(10, 0, 256)) for one in trial.honest))

    found = result(edit_trials(build.deep(), SALTS, warm), "DEEP-01")
    assert (found.result, found.expected) == (ERROR, "no KV for a salt that nobody used")
    for kind, identifier in ((EDGES, "DEEP-02"), (AT_ONCE, "DEEP-04")):
        found = result(edit_trials(build.deep(), kind, warm), identifier)
        assert found.detail.startswith("not checked: nothing to compare with (DEEP-01)")


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        (Sources(10, 64, 192), "KV of a salt for itself: 192, and 64 from its own cache"),
        (Sources(510, 0, 256), "KV of a salt for itself: 766 counted"),
    ],
)
def test_every_token_is_accounted_for(sources: Sources, found: str) -> None:
    def change(trial: Trial) -> Trial:
        return replace(trial, sources=sources) if trial.due else trial

    assert result(edit_trials(build.deep(), SALTS, change), "DEEP-01").found == found


def test_tokens_that_part_ways_fail_though_they_are_as_likely() -> None:
    def take_second(trial: Trial) -> Trial:
        (leg,) = trial.asked
        first, *rest = leg.output
        wrong = replace(leg, output=(replace(first, token=first.top[1][0]), *rest))
        return replace(trial, asked=(wrong,))

    found = result(edit_trials(build.deep(), HUNG_UP, take_second), "DEEP-06")
    assert "token 1 is another, 0.7 less likely" in found.found


def test_a_server_that_does_not_tell_what_it_holds_is_not_taken_for_one_that_holds_nothing() -> None:
    found = result(edit(build.deep(), "traffic.deep.hang_ups.after", {"prefill": Held()}), "DEEP-06")
    assert found.found == "decode: does not tell what it holds"


def test_without_reuse_nothing_more_is_judged() -> None:
    evidence = edit_legs(
        build.deep(), "peer", lambda leg: replace(leg, sources=Sources(local_compute=leg.tokens))
    )
    assert result(evidence, "DEEP-02").detail == "not checked because KV-PEER-01 failed"
    assert result(evidence, "DEEP-03").result == SKIPPED


# --- selecting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only", "skip", "deeper", "shown"),
    [
        ((), (), False, False),
        ((), (), True, True),
        (("images",), (), True, True),
        (("deep",), (), False, True),
        (("DEEP-01",), (), False, True),
        ((), ("deep",), True, False),
    ],
)
def test_checks_are_deep_where_they_are_asked_for(
    only: tuple[str, ...], skip: tuple[str, ...], deeper: bool, shown: bool
) -> None:
    selected = checks.select(only, skip, deeper)
    assert bool(selected & checks.DEEP) is shown
    assert checks.needs_traffic(checks.DEEP)


def test_a_run_without_deep_shows_none_of_its_checks_and_is_proven() -> None:
    judgement = judge(proven(), checks.select((), ()))
    assert "deep" not in {result.check.category for result in judgement.results}
    assert judgement.proven
