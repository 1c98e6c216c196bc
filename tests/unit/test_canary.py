"""The canary over real HTTP, against a stand-in for the stack: each way in which one can end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from kvshare import records
from kvshare.cli import main
from kvshare.commands.canary import exit_code_of
from kvshare.config.keys import Keys
from kvshare.config.threshold import Threshold
from kvshare.servers import completion, wait
from kvshare.verify import canary
from kvshare.verify.canary import Finding, Pair, State
from kvshare.verify.evidence import Spec
from tests.unit import fake_stack
from tests.unit.build import output
from tests.unit.fake_stack import FakeStack

Look = Callable[..., Finding]
NONE = Keys()
ASKED = ["cold", "honest", "pulled", "computed", "changed"]


@pytest.fixture
def look(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> Look:
    for name in ("ADMISSION_DEADLINE_S", "COUNTED_DEADLINE_S", "EXPORT_DEADLINE_S"):
        monkeypatch.setattr(canary, name, 0.1)
    monkeypatch.setattr(wait, "POLL_S", 0.01)

    def look(keys: Keys = NONE, threshold: Threshold | None = None) -> Finding:
        servers = (spec.prefill, spec.decode, spec.controller, spec.prefill_instance)
        pair = Pair(*servers, dtype="float32", threshold=threshold or Threshold())
        return canary.look(pair, keys, seed=1)

    return look


def test_a_prompt_that_comes_from_the_peer_with_the_right_answer_is_a_proof(
    look: Look, stack: FakeStack
) -> None:
    found = look()
    assert (found.state, found.sentence) == (
        State.PROVEN,
        "512 tokens from the peer, the answers off by 0.",
    )
    assert found.pulled_s is not None
    assert found.computed_s is not None
    assert [name.split("-", 3)[3] for name in stack.request_ids] == ASKED


def test_the_prompt_is_as_long_as_decode_pulls_and_no_longer_than_the_model_takes(
    look: Look, stack: FakeStack
) -> None:
    assert look(threshold=Threshold(700)).sentence.startswith("768 tokens from the peer")
    stack.max_model_len = 300
    assert look().sentence.startswith("256 tokens from the peer")


def test_each_is_sent_the_key_that_it_asks_for(look: Look, stack: FakeStack) -> None:
    stack.api_key, stack.token = "s3cret", "t0ken"  # pragma: allowlist secret
    assert look(Keys("s3cret", "t0ken")).state == State.PROVEN
    assert look(Keys("s3cret")).state == State.COMPUTED
    assert look(Keys(None, "t0ken")).state == State.UNANSWERED


def pull_loop_dead(stack: FakeStack) -> None:
    stack.pull_loop_alive = False


def declined(stack: FakeStack) -> None:
    stack.decode.min_tokens = 10_000


def decode_down(stack: FakeStack) -> None:
    stack.decode.healthy = False


def prefill_fails(stack: FakeStack) -> None:
    stack.prefill.fail_requests = True


def controller_down(stack: FakeStack) -> None:
    stack.controller_up = False


@pytest.mark.parametrize(
    ("fault", "state", "says"),
    [
        (pull_loop_dead, State.COMPUTED, "the controller did not hear of what prefill has just computed"),
        (declined, State.COMPUTED, "decode took 0 of 512 tokens from its peer"),
        (decode_down, State.UNANSWERED, "answers 503"),
        (prefill_fails, State.UNANSWERED, "answers 500"),
        (controller_down, State.COMPUTED, "the controller did not hear"),
    ],
)
def test_what_is_wrong_is_named(
    look: Look, stack: FakeStack, fault: Callable[[FakeStack], None], state: State, says: str
) -> None:
    fault(stack)
    found = look()
    assert found.state == state
    assert says in found.sentence


def test_an_answer_that_differs_is_wrong_however_the_counters_stand(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = completion.complete

    def off(http: Any, model: str, ask: completion.Ask) -> completion.Completion:
        asked = completion.Ask(ask.request_id, (*ask.prompt[:-1], 5), ask.max_tokens, None, True)
        return real(http, model, ask if not ask.request_id.endswith("pulled") else asked)

    monkeypatch.setattr(canary, "complete", off)
    assert look().state == State.WRONG


def test_tokens_from_a_peer_that_sent_nothing_are_told(
    look: Look, stack: FakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(stack.prefill), "transfers", property(lambda _: 0, lambda *_: None))
    found = look()
    assert (found.state, found.sentence) == (
        State.UNSENT,
        "decode took 512 tokens, and prefill counts no transfer.",
    )


def test_a_model_whose_answers_hang_on_nothing_leaves_the_canary_blind(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_stack, "output", lambda _, tokens: output(1, tokens=tokens))
    found = look()
    assert (found.state, found.sentence) == (
        State.BLIND,
        "one chunk changed moves the answer by 0, limit 0.001.",
    )


# --- the command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([State.PROVEN, State.PROVEN], 0),
        ([State.PROVEN, State.BLIND], 3),
        ([State.UNANSWERED], 3),
        ([State.BLIND, State.WRONG], 1),
        ([State.COMPUTED], 1),
        ([State.UNSENT], 1),
    ],
)
def test_the_exit_code_tells_wrong_from_could_not_tell(states: list[State], code: int) -> None:
    assert exit_code_of([Finding(state, "") for state in states]) == code


def test_the_client_prints_how_its_canary_ended(spec: Spec) -> None:
    pair = Pair(spec.prefill, spec.decode, spec.controller, spec.prefill_instance, dtype="float32")
    result = CliRunner().invoke(main, ["canary-client", "--spec", records.dumps(pair)])
    assert result.exit_code == 0, result.output
    assert records.loads(Finding, result.stdout).state == State.PROVEN
