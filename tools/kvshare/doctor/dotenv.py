"""Write the derived LOOKUP_TIMEOUT_MS into `.env`, and nothing else of it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from kvshare.doctor import checks
from kvshare.doctor.evidence import Evidence
from kvshare.errors import CouldNotCheckError

NAME = "LOOKUP_TIMEOUT_MS"
_LINE = re.compile(rf"^\s*(?:export\s+)?{NAME}=.*$", re.MULTILINE)


def derived_line(evidence: Evidence) -> str:
    """Return the line that the slowest measured link asks for; CouldNotCheckError if none was measured."""
    meant = checks.meanings(evidence)
    if not meant:
        reasons = [link.error or link.not_tried for link in evidence.links if link.error or link.not_tried]
        why = "; ".join(dict.fromkeys(reasons)) or "how large the model's KV is cannot be told yet"
        raise CouldNotCheckError(f"{NAME} cannot be derived: {why}; .env is as it was.")
    link, slowest = max(meant.values(), key=lambda pair: pair[1].needed_ms)
    return (
        f"{NAME}={slowest.advised_ms}  # kvshare doctor, {evidence.started[:10]}: {link.source} to "
        f"{link.target} {checks.speed_words(link)}; {slowest.longest_tokens} tokens take "
        f"{slowest.longest_s:.2f} s"
    )


def write(root: Path, line: str) -> Path:
    """Put the line into ``root``'s `.env`, in place of the one it has; return the file's path."""
    path = root / ".env"
    text = path.read_text() if path.is_file() else ""
    if _LINE.search(text):
        text = _LINE.sub(lambda _: line, text, count=1)
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
