"""docs/architecture.md: the rooms of the tool, from import-linter's contract."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "kvshare"
HEADER = """# Architecture

Made by `make generate` from the contract that import-linter holds in `make lint`
([pyproject.toml](../tools/pyproject.toml)). The system that the tool serves is in
[compose.yaml](../compose.yaml), top to bottom; the folders beside the tool are in
[CONTRIBUTING.md](../CONTRIBUTING.md#where-things-are).

A room imports from the rows below its own, never upward, and rooms of one row do not know each other,
unless a colon stands between them. Each arrow is an import that the code has today; those to `errors`,
which all rooms use, are left out.
"""


def page() -> str:
    """Return the whole page: a table of rooms, topmost first, and their imports as a Mermaid flowchart."""
    layers = _layers()
    return "\n".join([HEADER, _table(layers), _chart(layers)])


def _layers() -> list[str]:
    settings = tomllib.loads((ROOT / "tools/pyproject.toml").read_text())
    contract: dict[str, list[str]] = settings["tool"]["importlinter"]["contracts"][0]
    return contract["layers"]


def _rooms(layer: str) -> list[str]:
    return re.split(r"\s*[|:]\s*", layer)


def _table(layers: Sequence[str]) -> str:
    rows = [
        f"| {number} | `{room}` | {_purpose(room)} |"
        for number, layer in enumerate(layers, start=1)
        for room in _rooms(layer)
    ]
    return "\n".join(["| row | room | what is in it |", "|---|---|---|", *rows, ""])


def _sources(room: str) -> list[Path]:
    folder = ROOT / "tools" / PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def _purpose(room: str) -> str:
    """Return the first sentence of a package's docstring, on one line."""
    first = next(path for path in _sources(room) if path.stem in ("__init__", room))
    return " ".join((ast.get_docstring(ast.parse(first.read_text())) or "").split("\n\n")[0].split())


def _chart(layers: Sequence[str]) -> str:
    graph = grimp.build_graph(PACKAGE)
    rooms = [room for layer in layers for room in _rooms(layer)]
    for room in rooms:
        graph.squash_module(f"{PACKAGE}.{room}")
    lines = ["```mermaid", "flowchart TB"]
    for number, layer in enumerate(layers, start=1):
        lines += [f'  subgraph row{number}[" "]', *(f"    {room}" for room in _rooms(layer)), "  end"]
    lines += [
        f"  {importer} --> {imported}"
        for importer in rooms
        for imported in rooms
        if imported != rooms[-1]
        and graph.direct_import_exists(importer=f"{PACKAGE}.{importer}", imported=f"{PACKAGE}.{imported}")
    ]
    return "\n".join([*lines, "```", ""])
