"""A unified diff as exact texts to exchange."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FILE = re.compile(r"--- a/(?P<path>.+)\n\+\+\+ b/(?P=path)\n")
_HUNK = re.compile(r"@@ -\d+(?:,(?P<before>\d+))? \+(?P<line>\d+)(?:,(?P<after>\d+))? @@.*\n")


class HunkError(Exception):
    """A diff cannot be read, or a hunk's text is not where it should be; one clause that says which."""


@dataclass(frozen=True)
class Hunk:
    """Lines ``old`` become ``new``; they begin at ``line`` (from 1) once the hunks above are applied."""

    line: int
    old: tuple[str, ...]
    new: tuple[str, ...]

    def reversed(self) -> Hunk:
        return Hunk(self.line, self.new, self.old)


def read(diff: str) -> dict[str, tuple[Hunk, ...]]:
    """The hunks of each file of a diff, by its path, in the order of the diff. Raises HunkError."""
    files: dict[str, tuple[Hunk, ...]] = {}
    rest = diff
    while rest:
        if not (head := _FILE.match(rest)):
            raise HunkError(f"no file begins with {rest.splitlines()[:2]}")
        rest = rest[head.end() :]
        hunks = []
        while found := _HUNK.match(rest):
            hunk, rest = _read_hunk(found, rest[found.end() :])
            hunks.append(hunk)
        files[head["path"]] = tuple(hunks)
    return files


def _read_hunk(head: re.Match[str], rest: str) -> tuple[Hunk, str]:
    """The hunk that ``head`` announces, and what follows it."""
    before, after = (int(head[name] or 1) for name in ("before", "after"))
    old: list[str] = []
    new: list[str] = []
    while (len(old), len(new)) != (before, after):
        line, newline, rest = rest.partition("\n")
        if not newline or line[:1] not in (" ", "-", "+"):
            raise HunkError(f"a hunk of {before} and {after} lines has another number of them")
        if line[0] != "+":
            old.append(line[1:])
        if line[0] != "-":
            new.append(line[1:])
    return Hunk(int(head["line"]), tuple(old), tuple(new)), rest


def patched(text: str, hunks: tuple[Hunk, ...]) -> str:
    """The text with every hunk applied: its old lines stand there once, or repeatedly and also at its line.

    Raises HunkError.
    """
    lines = text.split("\n")
    for number, hunk in enumerate(hunks, start=1):
        at = list(_places(lines, hunk.old))
        if len(at) != 1 and hunk.line - 1 not in at:
            wanted = f"the text of hunk {number} exactly once or at line {hunk.line}"
            raise HunkError(f"{wanted}, but it stands {len(at)} times")
        start = at[0] if len(at) == 1 else hunk.line - 1
        lines[start : start + len(hunk.old)] = hunk.new
    return "\n".join(lines)


def unpatched(text: str, hunks: tuple[Hunk, ...]) -> str:
    """The text as it was before ``patched``. Raises HunkError."""
    for hunk in reversed(hunks):
        text = patched(text, (hunk.reversed(),))
    return text


def _places(lines: list[str], wanted: tuple[str, ...]) -> Iterator[int]:
    first, size = wanted[0], len(wanted)
    return (at for at, line in enumerate(lines) if line == first and tuple(lines[at : at + size]) == wanted)
