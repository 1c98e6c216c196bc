"""docs/models.md says what was seen of which family."""

from __future__ import annotations

from benchmarks.families import BESIDE, REFUSED, SHARING
from benchmarks.models import DOCUMENT, RESULTS, Seen, document, part, why
from benchmarks.results import read
from kvshare.config.settings import MULTIPROCESS


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text() == document(read(RESULTS)), ".venv/bin/python -m benchmarks.models --docs"


def test_what_was_seen_can_be_seen_again() -> None:
    beside = {part(family, MULTIPROCESS) for family in BESIDE}
    assert {*read(RESULTS)} <= {*SHARING, *REFUSED, *beside}


def test_what_was_seen_is_no_wish() -> None:
    seen = {name: Seen(**result.found) for name, result in read(RESULTS).items()}
    assert [name for name in seen.keys() & SHARING if not seen[name].judgement.startswith("proven")] == []
    assert [name for name in seen.keys() & REFUSED if not seen[name].judgement.startswith("refused")] == []


def test_the_reason_is_the_servers_own() -> None:
    said = "prefill ended:\nkvshare: expected a model whose KV can be shared and found /models/x: no; other"
    assert why(said) == "refused: no"
    assert why("first\nlast") == "last"
