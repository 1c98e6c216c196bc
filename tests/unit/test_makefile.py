"""What is typed is there: a target without a rule does nothing, and says so with exit code 0."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvshare.cli import main
from tests.conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
NAMES = ("README.md", "CONTRIBUTING.md", ".env.example")
READ = (*(ROOT / name for name in NAMES), *sorted(ROOT.glob("docs/**/*.md")))
# In code alone: "what must so make sure" is no command.
TYPED = re.compile(r"(?:^ {4}|`)make ([a-z-]+)", re.MULTILINE)
BY_NAME = re.compile(r"^ {4}kvshare .*", re.MULTILINE)


def phony(makefile: str) -> set[str]:
    return {name for line in re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE) for name in line.split()}


def rules(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, re.MULTILINE))


def test_every_phony_target_has_a_rule_and_every_rule_is_phony() -> None:
    assert phony(MAKEFILE) == rules(MAKEFILE)


def test_a_target_without_a_rule_is_found() -> None:
    makefile = MAKEFILE.replace(".PHONY: help", ".PHONY: test-nothing help")
    assert phony(makefile) - rules(makefile) == {"test-nothing"}


def test_every_public_command_of_the_tool_is_a_target() -> None:
    assert {name for name, command in main.commands.items() if not command.hidden} <= rules(MAKEFILE)


@pytest.mark.parametrize("path", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_says_to_type_can_be_typed(path: Path) -> None:
    """Every `make TARGET` exists, and no line begins with a program that is on nobody's PATH."""
    assert set(TYPED.findall(path.read_text())) <= rules(MAKEFILE)
    assert BY_NAME.findall(path.read_text()) == []
