"""What to type next works as typed on a fresh machine: `make VERB`, of a verb that the Makefile has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshare.cli import main

COMMAND = re.compile(rf"\bkvshare ({'|'.join(main.commands)})\b")
MADE = re.compile(r"\bmake ([a-z][a-z-]*)( NODE=)?")
TYPED = re.compile(r"^```.*?\n([\s\S]*?)^```|`([^`]*)`|^ {4}(.*)$", re.MULTILINE)
PROSE = {"one": "", "it": ""}


def strings(path: Path) -> Iterator[str]:
    """Yield every string of a module, docstrings aside; what an f-string is filled with is left out."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and is_text(node.value)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and is_text(node) and id(node) not in docstrings | inside:
            yield str(node.value)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def sources(root: Path) -> list[Path]:
    return [path for folder in ("tools/kvshare", "docker/engine") for path in (root / folder).rglob("*.py")]


def documents(root: Path) -> list[Path]:
    return [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")]


def typed(path: Path) -> Iterator[str]:
    """Yield what stands as code in a document."""
    for found in TYPED.finditer(path.read_text()):
        yield next(group for group in found.groups() if group is not None)


@pytest.fixture(scope="session")
def recipes(root: Path) -> dict[str, str]:
    """Return the recipe of each of the Makefile's targets."""
    text = (root / "Makefile").read_text()
    return dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)*)", text, re.MULTILINE))


def test_no_string_tells_to_type_the_bare_command(root: Path) -> None:
    bare = [f"{path}: {text}" for path in sources(root) for text in strings(path) if COMMAND.search(text)]
    assert bare == []


def test_every_make_that_is_told_of_is_there(root: Path, recipes: dict[str, str]) -> None:
    told = [(path, text) for path in sources(root) for text in strings(path)]
    told += [(path, text) for path in documents(root) for text in typed(path)]
    wrong = [
        f"{path.name}: make {verb}{node}"
        for path, text in told
        for verb, node in MADE.findall(text)
        if verb not in recipes | PROSE or (node and "$(NODE)" not in recipes[verb])
    ]
    assert wrong == []
