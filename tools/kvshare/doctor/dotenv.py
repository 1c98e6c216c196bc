"""The LOOKUP_TIMEOUT_MS that the measured link asks for, as a line of `.env`."""

from __future__ import annotations

from kvshare.doctor.checks.network import speed_words
from kvshare.doctor.evidence import Evidence
from kvshare.doctor.meaning import meanings
from kvshare.errors import CouldNotCheckError

NAME = "LOOKUP_TIMEOUT_MS"


def derived_line(evidence: Evidence) -> str:
    """Return the line that the slowest measured link asks for; CouldNotCheckError if none was measured."""
    meant = meanings(evidence)
    if not meant:
        reasons = [link.error or link.not_tried for link in evidence.links if link.error or link.not_tried]
        why = "; ".join(dict.fromkeys(reasons)) or "how large the model's KV is cannot be told yet"
        raise CouldNotCheckError(f"{NAME} cannot be derived: {why}; .env is as it was.")
    link, slowest = max(meant.values(), key=lambda pair: pair[1].needed_ms)
    return (
        f"{NAME}={slowest.advised_ms}  # make doctor ARGS=--write, {evidence.started[:10]}: {link.source} to "
        f"{link.target} {speed_words(link)}; {slowest.longest_tokens} tokens take "
        f"{slowest.longest_s:.2f} s"
    )
