"""tests/commit-subject.sh, the commit-msg hook: it goes red, and says what to do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT


def said_of(message: str, folder: Path) -> tuple[int, str]:
    file = folder / "COMMIT_EDITMSG"
    file.write_text(message)
    command = [str(ROOT / "tests/commit-subject.sh"), str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    "message",
    [
        "Ports: one registry\n",
        "docs/ports.md: shorter lines\n\nWhy; and more. " + "x" * 200 + "\n",
        "# a comment first\nPorts: one registry\n",
        "é" * 72 + "\n",
        "fixup! " + "x" * 100 + ".\n",
    ],
)
def test_a_short_subject_of_one_topic_passes(message: str, tmp_path: Path) -> None:
    assert said_of(message, tmp_path) == (0, "")


@pytest.mark.parametrize(
    ("subject", "wrong"),
    [
        ("x" * 73, "expected at most 72 characters, found 73"),
        ("é" * 73, "expected at most 72 characters, found 73"),
        ("Ports: one registry; a test", "expected one topic, found a semicolon"),
        ("Ports: one registry.", "expected no dot at the end, found one"),
        ("", "expected what the commit does, found nothing"),
        ("  ", "expected what the commit does, found nothing"),
    ],
)
def test_another_is_refused_with_a_sentence(subject: str, wrong: str, tmp_path: Path) -> None:
    code, said = said_of(f"{subject}\n\nbody\n", tmp_path)
    assert code == 1
    assert wrong in said


def test_one_install_brings_both_hooks() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    assert set(config["default_install_hook_types"]) == {"pre-commit", "commit-msg"}
    assert hooks["commit-subject"]["entry"] == "tests/commit-subject.sh"
    assert hooks["commit-subject"]["stages"] == ["commit-msg"]
