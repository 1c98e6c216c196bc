"""P2P_MIN_TOKENS: what a server says of it, how verify and bench take it, and how it is derived."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvshare.bench import calibrate
from kvshare.bench.observed import ArmRun, Observed
from kvshare.bench.results import Document, Facts, Link
from kvshare.bench.run import exit_code, make_document
from kvshare.bench.spec import PEER, RECOMPUTE, BenchSpec
from kvshare.config import threshold
from kvshare.config.settings import load_settings
from kvshare.config.threshold import Threshold
from kvshare.cost.model import first_worthwhile
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.verify import run as verify
from kvshare.verify.evidence import Spec
from tests.unit.bench_build import KV_BYTES, POINTS, SPEC, cold_ms, document, observed
from tests.unit.build import STACK, edit, proven

NEVER = Threshold(None)


@pytest.mark.parametrize(
    ("lmcache", "found"),
    [({}, Threshold(0)), ({"p2p_min_tokens": 1024}, Threshold(1024)), ({"p2p_min_tokens": "never"}, NEVER)],
)
def test_a_servers_fingerprint_says_it(lmcache: dict[str, object], found: Threshold) -> None:
    assert threshold.of_server(lmcache) == found


def test_it_declines_what_is_shorter() -> None:
    assert [Threshold(512).declines(tokens) for tokens in (256, 512)] == [True, False]
    assert NEVER.declines(10**9)
    assert not Threshold(0).declines(0)
    assert not Threshold(0).is_set


@pytest.mark.parametrize("value", ["0", "1024", "never", ""])
def test_settings_take_a_number_or_never(value: str, tmp_path: Path) -> None:
    settings_folder(tmp_path, value)
    assert load_settings(tmp_path, {}).get("P2P_MIN_TOKENS") == value


@pytest.mark.parametrize("value", ["-1", "1k", "always"])
def test_settings_refuse_anything_else(value: str, tmp_path: Path) -> None:
    settings_folder(tmp_path, value)
    with pytest.raises(KvshareError, match=f"P2P_MIN_TOKENS={value} is no number of tokens"):
        load_settings(tmp_path, {})


def settings_folder(root: Path, value: str) -> None:
    (root / ".env.example").write_text(
        f"DEVICE=cpu\nCOMPOSE_FILE=compose.yaml:compose.cpu.yaml\nP2P_MIN_TOKENS={value}\n"
    )


# --- verify -------------------------------------------------------------------------------------------------


def make_spec(value: object, prompt_tokens: int | None = None) -> Spec:
    evidence = edit(proven(), "decode.fingerprint.lmcache.p2p_min_tokens", value)
    for service in ("prefill", "decode"):
        evidence = edit(evidence, f"{service}.fingerprint.max_model_len", 4096)
    return verify.make_spec(STACK, evidence.containers, verify.Options(prompt_tokens=prompt_tokens), 0)


@pytest.mark.parametrize(("value", "tokens"), [(0, 1546), (1536, 1546), (1537, 1802), (2048, 2058)])
def test_verify_lengthens_its_prompts_to_what_decode_pulls(value: int, tokens: int) -> None:
    assert make_spec(value).prompt_tokens == tokens


def test_a_chosen_length_is_kept_where_decode_pulls_it() -> None:
    assert make_spec(1024, 1034).prompt_tokens == 1034


@pytest.mark.parametrize(
    ("value", "chosen", "sentence"),
    [
        (1024, 522, r"decode computes a prompt of 522 tokens itself \(P2P_MIN_TOKENS=1024\)"),
        (1024, 522, "set --prompt-tokens to 1034 or more"),
        (4096, None, "decode pulls no prompt that MAX_MODEL_LEN=4096 takes"),
        ("never", None, r"decode never pulls \(P2P_MIN_TOKENS=never\), there is nothing to prove"),
    ],
)
def test_verify_refuses_what_cannot_be_proven(value: object, chosen: int | None, sentence: str) -> None:
    with pytest.raises(KvshareError, match=sentence) as refusal:
        make_spec(value, chosen)
    assert refusal.value.exit_code == 2


# --- bench --------------------------------------------------------------------------------------------------


def made_with(found: Threshold) -> tuple[Document, BenchSpec]:
    spec, known = replace(SPEC, threshold=found), document()
    facts = Facts(known.started, known.ended, known.seconds, KV_BYTES, {}, known.link, known.fingerprint)
    return make_document(observed(), spec, facts), spec


def test_a_declined_point_is_said_and_left_out_of_the_fit() -> None:
    found, _ = made_with(Threshold(512))
    said = "peer: declined below 512 tokens (P2P_MIN_TOKENS=512), decode computes these prompts"
    assert [said in result.notes for result in found.points] == [True, False, False]
    assert found.cost is not None
    assert (found.cost.shortest, found.cost.longest) == (522, 1034)
    assert found.threshold == Threshold(512)


def test_nothing_needs_to_move_where_everything_is_declined() -> None:
    found, spec = made_with(NEVER)
    assert found.cost is None
    assert found.verdict.startswith("no verdict")
    assert "peer: declined (P2P_MIN_TOKENS=never), decode computes these prompts" in found.points[2].notes
    assert exit_code(replace(found, moved_tokens=0), spec, False) == 0
    assert exit_code(replace(found, moved_tokens=0), replace(spec, threshold=Threshold(512)), False) == 1


# --- calibration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "longest", "first"),
    [(None, None, None), (0.0, None, 256), (257.0, None, 512), (512.0, 512, 512), (513.0, 600, None)],
)
def test_the_break_even_is_rounded_up_to_whole_chunks(
    tokens: float | None, longest: int | None, first: int | None
) -> None:
    assert first_worthwhile(tokens, 256, longest) == first


def test_the_line_has_the_date_the_cost_and_the_link() -> None:
    assert calibrate.line(document()) == (
        "P2P_MIN_TOKENS=512  # make bench ARGS=--calibrate, 2026-11-24: a pull: 200 ms + bytes / (0.26 GB/s) "
        "on a link of 1.50 GB/s; worth it from 512 tokens"
    )


@pytest.mark.parametrize(
    ("break_even", "why"),
    [(None, "recomputing is faster at any length"), (20_000.0, "a pull would pay from 20,224 tokens")],
)
def test_where_no_length_pays_it_is_never(break_even: float | None, why: str) -> None:
    plain = document()
    assert plain.cost is not None
    found = replace(plain, cost=replace(plain.cost, break_even_tokens=break_even), verdict=why, link=NO_LINK)
    line = calibrate.line(found)
    assert line.startswith("P2P_MIN_TOKENS=never  # make bench ARGS=--calibrate")
    assert why in line


def test_a_length_at_which_a_pull_was_slower_is_declined_whatever_the_fit_says() -> None:
    """The fit crosses at 400 tokens or so; at 522 the pulls were slower all the same."""
    slower = with_ttft(observed(), PEER, 522, 1e4)
    cost = document().cost
    found = replace(document(slower), cost=cost, verdict="worth it from 512 tokens")
    assert calibrate.threshold(found) == Threshold(768)
    assert calibrate.line(found).endswith("worth it from 512 tokens, but measured slower at 512")


def test_a_pull_is_compared_with_decodes_own_computation() -> None:
    """Decode's GPU is twice as fast as prefill's here."""
    quick = observed()
    for point in POINTS:
        quick = with_ttft(quick, RECOMPUTE, point.prompt_tokens, cold_ms(point.prompt_tokens) / 2)
    plain, found = document().cost, document(quick).cost
    assert plain is not None
    assert found is not None
    assert found.prefill.linear_s == pytest.approx(plain.prefill.linear_s / 2, rel=0.05)


def with_ttft(seen: Observed, arm: str, tokens: int, ttft_ms: float) -> Observed:
    """The same, but with these times to first token of one arm at one length."""

    def changed(run: ArmRun) -> ArmRun:
        if run.arm != arm or run.requests[0].prompt_tokens != tokens:
            return run
        return replace(run, requests=(replace(run.requests[0], ttft_ms=ttft_ms),))

    made = tuple(replace(r, arms=tuple(changed(run) for run in r.arms)) for r in seen.repetitions)
    return replace(seen, repetitions=made)


NO_LINK = Link(None, "", "nobody measured it")


def test_without_a_fit_nothing_is_written() -> None:
    with pytest.raises(CouldNotCheckError, match="cannot be derived, see above"):
        calibrate.line(replace(document(), cost=None))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"threshold": Threshold(256)}, "decode runs with P2P_MIN_TOKENS=256, and shorter pulls cannot be"),
        ({"threshold": NEVER}, "set P2P_MIN_TOKENS=0 in .env, type make up NODE=decode"),
        ({"arms": (PEER,)}, "a calibration compares the arms peer and recompute"),
        ({"points": POINTS[:1]}, "two prompt lengths or more"),
        ({"points": tuple(replace(p, concurrency=4) for p in POINTS)}, "one request in flight"),
        (
            {"caches": {"decode": "http://127.0.0.1:8203"}},
            "pulls whatever a peer has, and P2P_MIN_TOK",
        ),
    ],
)
def test_a_calibration_that_cannot_work_is_refused(change: dict[str, object], sentence: str) -> None:
    calibrate.require(SPEC)
    with pytest.raises(KvshareError, match=sentence) as refusal:
        calibrate.require(replace(SPEC, **change))  # type: ignore[arg-type]
    assert refusal.value.exit_code == 2
