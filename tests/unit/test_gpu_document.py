"""docs/gpu.md says what the run on the GPU left, and the run came out as it must."""

from __future__ import annotations

import json
from typing import Any

from tests.conftest import ROOT
from tests.gpu import document


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "tests/gpu/results.json").read_text())
    return found


def test_the_document_is_current() -> None:
    assert (ROOT / "docs/gpu.md").read_text() == document.render(results()), "python -m tests.gpu --docs"


def test_the_kernel_was_exact_with_the_patch_and_never_without() -> None:
    kernel = results()["kernel"]
    assert kernel["exact_with"] == kernel["tried"]
    assert kernel["exact_without"] == {}


def test_the_chain_was_proven_with_the_patch_and_failed_on_the_answers_without() -> None:
    found = results()
    assert found["with"]["proven"]
    assert {"KV-RIGHT-01", "KV-RIGHT-02"} <= set(found["without"]["failed"])
    assert found["without"]["checks"]["KV-PEER-01"][0] == "success"


def test_a_part_that_was_not_run_is_left_out() -> None:
    assert "Time to first token" not in document.render({"machine": results()["machine"]})
