"""What to type next works as typed on a fresh machine, and no advice outlives the fault that it is about."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshare.cli import main

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docker"))

from guard.series import load_all  # noqa: E402

OBSOLETE = [
    (patch.id, advice)
    for series in load_all()
    for patch in series.patches
    for advice in patch.fields.get("X-Kvshare-Obsolete", ())
]
COMMAND = re.compile(rf"\bkvshare ({'|'.join(main.commands)})\b")
MADE = re.compile(r"\bmake ([a-z][a-z-]*)( NODE=)?")
TYPED = re.compile(r"^```.*?\n([\s\S]*?)^```|`([^`]*)`|^ {4}(.*)$", re.MULTILINE)
PROSE = {"one": "", "it": ""}


def strings(path: Path) -> Iterator[str]:
    """Yield every string of a module, docstrings aside; what an f-string is filled with is left out."""
    if path.suffix == ".j2":
        yield from path.read_text().splitlines()
        return
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


def sources() -> list[Path]:
    folders = (ROOT / "tools/kvshare", ROOT / "docker/engine")
    return [path for folder in folders for kind in ("*.py", "*.j2") for path in folder.rglob(kind)]


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


def typed(path: Path) -> Iterator[str]:
    """Yield what stands as code in a document."""
    for found in TYPED.finditer(path.read_text()):
        yield next(group for group in found.groups() if group is not None)


@pytest.fixture(scope="session")
def recipes() -> dict[str, str]:
    """Return the recipe of each of the Makefile's targets."""
    text = (ROOT / "Makefile").read_text()
    return dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)*)", text, re.MULTILINE))


def test_no_string_tells_to_type_the_bare_command() -> None:
    bare = [f"{path}: {text}" for path in sources() for text in strings(path) if COMMAND.search(text)]
    assert bare == []


def test_every_make_that_is_told_of_is_there(recipes: dict[str, str]) -> None:
    told = [(path, text) for path in sources() for text in strings(path)]
    told += [(path, text) for path in documents() for text in typed(path)]
    wrong = [
        f"{path.name}: make {verb}{node}"
        for path, text in told
        for verb, node in MADE.findall(text)
        if verb not in recipes | PROSE or (node and "$(NODE)" not in recipes[verb])
    ]
    assert wrong == []


def words(path: Path) -> str:
    """Return all that a file says, each string in one piece, line breaks and capitals aside."""
    parts = [path.read_text(), *(strings(path) if path.suffix == ".py" else ())]
    return " ".join(" ".join(parts).split()).casefold()


@pytest.fixture(scope="session")
def said() -> dict[str, str]:
    told = [*sources(), *(path for path in documents() if path.name != "patches.md")]
    return {str(path.relative_to(ROOT)): words(path) for path in told}


@pytest.mark.parametrize(("patch", "advice"), OBSOLETE)
def test_nothing_gives_advice_that_a_patch_has_made_obsolete(
    patch: str, advice: str, said: dict[str, str]
) -> None:
    assert [name for name, text in said.items() if advice.casefold() in text] == [], f"see {patch}"


def test_some_patches_name_such_advice() -> None:
    assert {"registration", "pull-loop", "lookup-loop"} <= {patch for patch, _ in OBSOLETE}
