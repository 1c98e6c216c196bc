"""Tables of the documents."""

from typing import Any


def table(header: list[Any], rows: list[list[Any]]) -> str:
    """Return them as a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
