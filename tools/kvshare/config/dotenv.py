"""Write one line into `.env`, and nothing else of it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path


def write(root: Path, line: str) -> Path:
    """Put a NAME=value line into ``root``'s `.env`, in place of the one it has; return the file's path."""
    path = root / ".env"
    text = path.read_text() if path.is_file() else ""
    name = line.partition("=")[0]
    present = re.compile(rf"^\s*(?:export\s+)?{name}=.*$", re.MULTILINE)
    if present.search(text):
        text = present.sub(lambda _: line, text, count=1)
    else:
        text += ("" if not text or text.endswith("\n") else "\n") + line + "\n"
    _replace(path, text)
    return path


def _replace(path: Path, text: str) -> None:
    """Write the file whole or not at all, with the permissions that it had."""
    mode = path.stat().st_mode & 0o777 if path.is_file() else 0o644
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".env.", delete=False) as scratch:
        scratch.write(text)
    Path(scratch.name).chmod(mode)
    Path(scratch.name).replace(path)
