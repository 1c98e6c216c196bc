"""The oracle's own parts: a case is its seed's alone, unlike answers are told, a failure is made small."""

import random
from dataclasses import replace
from typing import Any

import pytest

from kvshare.checking.patches import expected_patches
from kvshare.servers.readings import Position
from tests.conftest import ROOT
from tests.scenarios.under_traffic import oracle
from tests.scenarios.under_traffic.answers import REFUSED, Answer, Choice, problem, read_answer
from tests.scenarios.under_traffic.cures import ADAPTER, CURES, ENTRANCE, IDENTITY, Cure
from tests.scenarios.under_traffic.oracle import Problem
from tests.scenarios.under_traffic.requests import BURST, MAX_MODEL_LEN, Case, Request, Text, draw_case
from tests.scenarios.under_traffic.reuse import too_much
from tests.scenarios.under_traffic.shrink import as_test, shrink

PATCHES = ROOT / "docker/patches/lmcache-0.5.6"
# Where a file of the image comes from, of which a line is a cure.
SOURCES = {
    IDENTITY: PATCHES / "files/lmcache/integration/vllm/identity.py",
    ADAPTER: PATCHES / "unread-lookup.patch",
    ENTRANCE: ROOT / "docker/engine/kvshare_engine/requests.py",
}
TEXT = Text(1, 512, 17, 3)
ASKED = Request("decode", (TEXT,))
FIRST, SECOND = Position(5, ((5, -0.1), (6, -2.0))), Position(7, ((7, -0.3), (8, -0.4)))
RIGHT = Answer(200, (Choice((FIRST, SECOND), "length"),))


def with_positions(*positions: Position, finish: str = "length") -> Answer:
    return Answer(200, (Choice(positions, finish),))


def test_a_case_is_a_function_of_its_seed() -> None:
    assert draw_case(1, 12) == draw_case(1, 12)
    assert draw_case(1, 12) != draw_case(2, 12)
    assert max(map(len, draw_case(1, 12))) == BURST


def test_what_shares_a_prefix_does_so_in_every_run() -> None:
    a, b = Text(1, 512, 17, 3), Text(1, 256, 99, 4)
    assert a.written("x")[:256] == b.written("x")[:256]
    assert a.written("x")[:256] != a.written("y")[:256]
    assert len(a.written("x")) == 529


def test_a_prompt_and_its_answer_fit_the_model() -> None:
    texts = [text for wave in draw_case(5, 200) for request in wave for text in request.texts]
    assert max(text.shared + text.own for text in texts) < MAX_MODEL_LEN


def test_what_vllm_itself_may_end_is_not_drawn() -> None:
    every = [request.fields for wave in draw_case(5, 2000) for request in wave]
    both = [fields for fields in every if {"echo", "n"} <= fields.keys()]
    assert both
    assert not any("stream" in fields for fields in both)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RIGHT, None),
        (with_positions(FIRST, replace(SECOND, top=((7, -0.3005), (8, -0.4)))), None),
        (
            with_positions(FIRST, replace(SECOND, top=((7, -0.302), (8, -0.4)))),
            "wrong: log-probabilities off by 0.002",
        ),
        (with_positions(FIRST, replace(SECOND, token=8)), "wrong: token 2 is another, 0.1 less likely"),
        (with_positions(FIRST), "wrong: 1 tokens, length; alone 2 tokens, length"),
        (with_positions(FIRST, SECOND, finish="stop"), "wrong: 2 tokens, stop; alone 2 tokens, length"),
        (Answer(200), "0 choices, alone 1"),
        (Answer(500, error="ended"), "status 500 (ended), alone 200 (None)"),
        (Answer(200, error="in the stream"), "status 200 (in the stream), alone 200 (None)"),
        (Answer(None, error="no answer", hung=True), "hung"),
        (Answer(None, left=True), None),
    ],
)
def test_an_answer_is_held_against_the_one_of_a_server_alone(answer: Answer, said: str | None) -> None:
    assert problem(ASKED, answer, RIGHT) == said


def test_a_token_that_a_seed_draws_is_no_near_tie() -> None:
    tie = ((7, -0.3), (8, -0.3005))
    one, other = (with_positions(Position(token, tie)) for token in (7, 8))
    assert problem(ASKED, other, one) is None
    drawn = replace(ASKED, fields={"seed": 1, "temperature": 100})
    assert problem(drawn, other, one) == "wrong: token 1 is another, though drawn by one seed"


@pytest.mark.parametrize(
    ("fields", "reused", "said"),
    [
        ({}, 512, None),
        ({}, 513, "513 tokens reused, of which its kind has sent 512"),
        ({"cache_salt": "vllm-only:x"}, 512, None),
        ({"cache_salt": "one"}, 256, "256 tokens reused, of which its kind has sent 0"),
        ({"model": "a"}, 256, "256 tokens reused, of which its kind has sent 0"),
        ({"n": 2}, 529, None),
    ],
    ids=str,
)
def test_a_request_reuses_what_its_own_kind_has_sent(
    fields: dict[str, Any], reused: int, said: str | None
) -> None:
    request = replace(ASKED, fields=fields)
    of_another = replace(ASKED, texts=(replace(TEXT, seed=4),))
    assert too_much(request, reused, [of_another, request], "run") == said


def test_an_answer_says_what_was_reused_for_it() -> None:
    usage = {"prompt_tokens": 529, "prompt_tokens_details": {"cached_tokens": 512}}
    events: list[dict[str, Any]] = [
        {"choices": []},
        {"choices": [], "usage": None},
        {"choices": [], "usage": usage},
    ]
    assert read_answer(events).reused == 512


def test_what_must_be_refused_is_held_against_nobody() -> None:
    hostile = replace(ASKED, refused=True)
    assert problem(hostile, Answer(400, error="no"), Answer(None)) is None
    assert problem(hostile, RIGHT, Answer(None)) == "status 200 for 400: None"


@pytest.mark.parametrize("cure", CURES, ids=lambda cure: cure.name)
def test_what_a_cure_is_taken_out_of_is_there(cure: Cure) -> None:
    assert {*cure.patches} <= {*expected_patches("cpu")}
    for path, (line, _) in (cure.lines or {}).items():
        assert SOURCES[path].read_text().count(line) == 1
    assert cure.patches or cure.lines


def test_a_cure_is_seen_by_what_its_fault_does_to_an_answer() -> None:
    cure = Cure("a cure", "^wrong: ", nodes=("decode",))
    assert cure.is_seen_by(Problem(ASKED, "wrong: log-probabilities off by 0.9"))
    assert not cure.is_seen_by(Problem(ASKED, "hung"))
    assert not cure.is_seen_by(Problem(replace(ASKED, node="prefill"), "wrong: no token on one side"))


def test_a_failure_is_made_as_small_as_it_gets() -> None:
    def fails(case: Case) -> bool:
        """One salt after the other, on two nodes."""
        salts = [request.fields.get("cache_salt") for wave in case for request in wave]
        return "one" in salts and "two" in salts[salts.index("one") :]

    case = next(case for seed in range(50) if fails(case := draw_case(seed, 20)))
    smallest = shrink(case, fails, 2000, seconds=60)
    assert [len(request.fields) for wave in smallest for request in wave] == [1, 1]
    assert all(text.own == 1 and not text.shared for wave in smallest for one in wave for text in one.texts)


def test_a_case_is_made_small_by_what_was_wrong_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is smaller fails too, but otherwise."""

    def play(_: oracle.Oracle, case: Case, *__: object) -> list[Problem]:
        every = [request for wave in case for request in wave]
        drawn = [request for request in every if "seed" in request.fields]
        said = f"wrong: log-probabilities off by 0.{len(every)}" if drawn else "hung"
        return [Problem(one, said) for one in drawn or every]

    monkeypatch.setattr(oracle.Oracle, "play", play)
    monkeypatch.setattr(oracle.Oracle, "causes", lambda _: [])
    case = next(case for seed in range(50) if play(None, case := draw_case(seed, 3))[0].kind != "hung")  # type: ignore[arg-type]
    with pytest.raises(AssertionError) as failed:
        oracle.Oracle(rig=None, seed=1).require(case)  # type: ignore[arg-type]
    smallest = str(failed.value).partition("def test_this_case")[2]
    assert smallest.count("Request(") == 1
    assert "'seed'" in smallest


def test_a_small_case_is_printed_as_the_test_that_it_is() -> None:
    case = ((ASKED,), (replace(ASKED, fields={"n": 2}),))
    found: dict[str, Case] = {}

    class Oracle:
        def require(self, case: Case) -> None:
            found["case"] = case

    names = {"Request": Request, "Text": Text, "Oracle": Oracle}
    exec(as_test(case), names)
    names["test_this_case"](Oracle())
    assert found["case"] == case


def test_no_more_is_tried_than_allowed() -> None:
    tried = []

    def fails(case: Case) -> bool:
        tried.append(case)
        return random.Random(len(tried)).random() < 0.5

    shrink(draw_case(1, 20), fails, 7, seconds=60)
    assert len(tried) == 7
    shrink(draw_case(1, 20), fails, 7, seconds=-1)
    assert len(tried) == 7


def test_who_hangs_up_is_judged_by_what_a_patient_client_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def ask(_: str, request: Request, *__: object, **___: object) -> Answer:
        asked.append(request)
        return Answer(REFUSED, error="temperature must be in [0, 2]")

    monkeypatch.setattr(oracle, "ask", ask)
    hasty = replace(ASKED, hang_up_s=0.8)
    honest = oracle._alone(hasty, "run")
    assert [request.hang_up_s for request in asked] == [None]
    assert problem(hasty, Answer(REFUSED, error="temperature must be in [0, 2]"), honest) is None
    assert problem(hasty, Answer(None, left=True), honest) is None
    assert problem(hasty, RIGHT, honest) is not None
