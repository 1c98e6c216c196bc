"""docs/upstream: what a person can send, of each patch that was never offered to its project."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from guard.series import FOLDER, Patch, Series

PROBES = FOLDER.parent / "probes"
NEVER = "no"


def texts(every: Iterable[Series]) -> dict[str, str]:
    """The text of each patch that was never sent, by the name of its file."""
    unsent = [(s, patch) for s in every for patch in s.patches if patch.forwarded == NEVER]
    return {f"{patch.id}.md": render(series, patch) for series, patch in unsent}


def write(every: Iterable[Series], folder: Path) -> None:
    """Make the folder hold these texts, and no others."""
    wanted = texts(every)
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text)


def render(series: Series, patch: Patch) -> str:
    """The problem, how it is reproduced, and the diff, in Markdown."""
    problem, _, changes = patch.text.partition("\n* ")
    title = f"{patch.title[0].upper()}{patch.title[1:]}"
    stands_on = f" It stands on {_links(patch.needs)}." if patch.needs else ""
    reports = "".join(f"\nReported as <{url}>.\n" for url in patch.fields.get("Bug", ()))
    return f"""\
# {title}

Made by `make generate` from the patch `{patch.id}` to {series.distribution} {series.version}; \
never sent, ready to be.{stands_on}

## Problem

{problem.strip()}
{reports}
## Reproduction

{_claim(patch)}: {patch.field("X-Kvshare-Probe").partition("; ")[2]}.
It is `docker/probes/{patch.probe}.py` of kvshare, and fails without this patch.

## Change

* {changes.strip()}

## Diff

```diff
{patch.whole_diff}```
"""


def _links(ids: Iterable[str]) -> str:
    return ", ".join(f"[{needed}]({needed}.md)" for needed in sorted(ids))


def _claim(patch: Patch) -> str:
    """What the patch's probe holds, as its docstring says: ``Probe of ID: CLAIM.``"""
    said = ast.get_docstring(ast.parse((PROBES / f"{patch.probe}.py").read_text())) or ""
    claim = said.partition("\n")[0].partition(": ")[2].rstrip(".")
    return f"{claim[:1].upper()}{claim[1:]}"
