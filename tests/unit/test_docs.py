"""The docs say what the tool does: a section a check, with its real failure, and a current reference."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from kvshare.checking import rendering
from kvshare.checking.registry import ERROR, Check, Result
from kvshare.cli import main
from kvshare.doctor import checks as doctor
from kvshare.verify import checks
from tests.unit import doctor_faults, faults

SECTION = re.compile(
    r"^## (?P<id>[A-Z]+(?:-[A-Z]+)*-\d+)\n(?P<body>.*?)(?=^#{1,2} |\Z)", re.MULTILINE | re.DOTALL
)
EXAMPLE = re.compile(r"```text\n(.*?)```", re.DOTALL)
CHECKS: tuple[Check[Any], ...] = (*checks.REGISTRY, *doctor.REGISTRY)


def sections(root: Path) -> dict[str, str]:
    text = (root / "docs/checks.md").read_text()
    return {match["id"]: match["body"] for match in SECTION.finditer(text)}


def example(check: Check[Any]) -> str:
    """Return how the check's failure looks, from the first fault that it names."""
    of_doctor = check.id.startswith("DOC-")
    known: Mapping[str, Any] = doctor_faults.FAULTS if of_doctor else faults.FAULTS
    fault = next(fault for fault in known.values() if fault.cause == check.id)
    results = (doctor if of_doctor else checks).REGISTRY.evaluate(fault.evidence, {check.id})
    stream = io.StringIO()
    rendering.print_checks(rendering.plain_console(stream), [check.category], results, everything=False)
    return stream.getvalue().split("\n\n")[0].split("\n", 2)[2] + "\n"


def test_every_check_has_a_section_and_every_section_a_check(root: Path) -> None:
    assert list(sections(root)) == [check.id for check in CHECKS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_section_says_what_how_it_looks_and_what_to_do(
    check: Check[Any], root: Path, update_golden: bool
) -> None:
    path = root / "docs/checks.md"
    if update_golden:
        body = sections(root)[check.id]
        # A function, because the example may hold backslashes.
        path.write_text(
            path.read_text().replace(body, EXAMPLE.sub(lambda _: f"```text\n{example(check)}```", body))
        )
    body = sections(root)[check.id]
    assert f"**{check.description}**{' (warning)' if check.warning else ''}. " in body
    found = EXAMPLE.search(body)
    assert found is not None
    assert found.group(1) == example(check), "regenerate with pytest tests/unit --update-golden"
    assert body.split("```")[2].strip(), "what to do is missing"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_hint_leads_to_the_section(check: Check[Any]) -> None:
    # GitHub's anchor of a heading that is nothing but the id.
    assert rendering.hint(Result(check, ERROR)) == f"docs/checks.md#{check.id.lower()}"


def test_cli_reference_is_current(root: Path) -> None:
    command = [sys.executable, "tools/generate_cli_reference.py", "--check"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_command_is_documented_and_says_what_it_does(root: Path) -> None:
    text = (root / "docs/cli.md").read_text()
    for name, command in main.commands.items():
        assert command.help, f"{name} has no help"
        if not command.hidden:
            assert f"## kvshare {name}\n" in text


@pytest.mark.parametrize("command", main.commands.values(), ids=lambda command: command.name)
def test_every_option_of_a_public_command_has_help(command: click.Command) -> None:
    if not command.hidden:
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{command.name} {parameter.opts[0]} has no help"
