"""The operator's side as a whole: engines and client container are stand-ins, all between is real."""

from __future__ import annotations

import io
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvshare import records
from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from kvshare.site.containers import Containers
from kvshare.verify import checks, reading
from kvshare.verify import run as verify
from kvshare.verify.evidence import Evidence, Spec
from tests.unit.build import SPEC, edit, proven
from tests.unit.build import WITH_GATEWAY as STACK

SETTINGS = Settings(Path("/nowhere"), {"DEVICE": "cpu"})


class Process:
    """A client that has been started: it ends as a test says, and keeps how it was started."""

    def __init__(self, code: int = 0, out: str = "", late: bool = False) -> None:
        self.returncode, self.out, self.late = code, out, late
        self.calls: list[tuple[list[str], dict[str, Any]]] = []
        self.said = ""

    class Pipe(io.StringIO):
        def __init__(self, process: Process) -> None:
            super().__init__()
            self.process = process

        def close(self) -> None:
            if not self.closed:
                self.process.said = self.getvalue()
            super().close()

    def __call__(self, command: list[str], **more: Any) -> Process:
        self.calls.append((command, more))
        self.stdin = self.Pipe(self)
        return self

    def communicate(self, timeout: float) -> tuple[str, None]:
        if self.late:
            raise subprocess.TimeoutExpired("docker", timeout)
        return self.out, None

    def poll(self) -> int:
        return self.returncode


def gather(
    monkeypatch: pytest.MonkeyPatch, client: Process, evidence: Evidence | None = None, **options: Any
) -> Evidence:
    """Gather from the engines of a proven run, or of another."""
    seen = evidence or proven()
    monkeypatch.setattr(Containers, "look", lambda _: {})
    monkeypatch.setattr(reading, "await_started", lambda *_: None)
    monkeypatch.setattr(reading, "containers", lambda _: seen.containers)
    monkeypatch.setattr(reading, "engines", lambda _: seen.engines)
    monkeypatch.setattr(reading, "logs", lambda _: seen.logs)
    monkeypatch.setattr(subprocess, "Popen", client)
    return verify.gather(Containers(STACK, SETTINGS), verify.Options(**options), True, lambda _: None)


def traffic(evidence: Evidence) -> str:
    assert evidence.traffic is not None
    return records.dumps(evidence.traffic)


def test_evidence_of_both_sides_comes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gather(monkeypatch, Process(out=traffic(proven())), seed=7)
    assert found.traffic == proven().traffic
    assert found.containers == proven().containers
    assert found.client_error is None


def test_client_runs_on_the_prefill_nodes_context_with_the_whole_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = Process(out=traffic(proven()))
    gather(monkeypatch, answer, seed=7, wait_s=0)
    command, more = answer.calls[0]
    assert command[:4] == ["docker", "--context", "default", "compose"]
    assert {"run", "--rm", "--no-deps", "-T", "legs"} <= set(command)
    assert records.loads(Spec, command[-1]) == SPEC
    assert more["stdout"] == subprocess.PIPE
    assert "stderr" not in more, "progress must go to the user as it comes"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Process(code=125), "ended with code 125"),
        (Process(late=True), "did not end in"),
        (Process(out="{}"), "makes no sense: Traffic: Object missing required field `spec`"),
        (Process(out="not json"), "makes no sense"),
    ],
)
def test_client_without_evidence_is_evidence(
    answer: Process, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gather(monkeypatch, answer)
    assert found.traffic is None
    assert found.client_error is not None
    assert reason in found.client_error


def test_client_that_refuses_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KvshareError, match="refused") as refusal:
        gather(monkeypatch, Process(code=2))
    assert refusal.value.exit_code == 2


def test_a_seed_is_drawn_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Process(out=traffic(proven()))
    for _ in range(2):
        gather(monkeypatch, answer)
    assert len({records.loads(Spec, command[-1]).seed for command, _ in answer.calls}) == 2


def test_chunk_size_and_length_come_from_the_fingerprints() -> None:
    evidence = proven()
    for service in ("prefill", "decode"):
        evidence = edit(evidence, f"{service}.fingerprint.lmcache.chunk_size", 128)
    options = verify.Options(prompt_tokens=1290)
    assert verify.make_spec(STACK, evidence.containers, options, 0).chunk_size == 128


@pytest.mark.parametrize(("known", "drawn"), [(None, 259), (259, 259), (32000, 20000), (512, 512)])
def test_prompts_are_drawn_from_the_models_ordinary_tokens(known: int | None, drawn: int) -> None:
    evidence = edit(proven(), "decode.fingerprint.vocab_size", known)
    assert verify.make_spec(STACK, evidence.containers, verify.Options(), 0).vocab == drawn


@pytest.mark.parametrize(
    ("tokens", "sentence"), [(200, "shorter than one chunk"), (1802, "MAX_MODEL_LEN=1600")]
)
def test_length_that_cannot_work_is_refused_before_anything_is_sent(
    tokens: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Process(out=traffic(proven()))
    with pytest.raises(KvshareError, match=sentence):
        gather(monkeypatch, answer, prompt_tokens=tokens)
    assert answer.calls == []


def test_client_does_not_wait_for_a_container_that_is_gone() -> None:
    options = verify.Options()
    assert verify.make_spec(STACK, proven().containers, options, 9.0).wait_s == 9.0
    gone = edit(proven(), "decode.state", "exited").containers
    assert verify.make_spec(STACK, gone, options, 9.0).wait_s == 0


def test_engines_alone_send_no_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Process(out=traffic(proven()))
    gather(monkeypatch, client)
    client.calls.clear()
    monkeypatch.setattr(verify, "read_stack", lambda _: STACK)
    selected = checks.select(("engines", "images", "configuration"), ())
    (judgement,) = verify.verify(SETTINGS, verify.Options(), selected, lambda _: None)
    assert client.calls == []
    assert judgement.exit_code == 0


def two_decodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None]]:
    """A stack with two decode nodes; returns which of them was verified with which seed, as it happens."""
    seen: list[tuple[str, int | None]] = []

    def remember(site: Containers, options: verify.Options, *_: object) -> Evidence:
        seen.append((site.stack.decode.name, options.seed))
        return proven()

    monkeypatch.setattr(Containers, "look", lambda _: {})
    decodes = tuple(replace(STACK.decode, name=name) for name in ("decode-1", "decode-2"))
    monkeypatch.setattr(verify, "read_stack", lambda _: replace(STACK, decodes=decodes))
    monkeypatch.setattr(verify, "gather", remember)
    return seen


def test_reuse_is_proven_on_each_decode_node_with_prompts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = two_decodes(monkeypatch)
    judged = verify.verify(SETTINGS, verify.Options(seed=5), checks.select((), ()), lambda _: None)
    assert len(judged) == 2
    assert seen == [("decode-1", 5), ("decode-2", 5 + verify.SEED_STEP)]


def test_one_of_several_decode_nodes_can_be_verified_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = two_decodes(monkeypatch)
    verify.verify(SETTINGS, verify.Options(node="decode-2"), checks.select((), ()), lambda _: None)
    assert seen == [("decode-2", None)]
    with pytest.raises(KvshareError, match="decode-3 is no decode node, did you mean decode-"):
        verify.verify(SETTINGS, verify.Options(node="decode-3"), checks.select((), ()), lambda _: None)
