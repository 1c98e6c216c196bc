"""docs/patches.md, made from the patches themselves."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from patch import Edit, Patch

HEAD = """\
# Patches

Made by `python docker/patches/apply.py --docs > docs/patches.md`; a test compares.

They are applied while an image is built (`docker/patches/apply.py --device cpu|cuda`), each under guard: the
distribution has the version named here, the sha256 of the whole file is the known one, every text to
exchange stands in it exactly once, the result compiles and has the known sha256, and nothing is written
unless all of it can be. Where several patches change one file, each knows it as the one before left it.
A second run changes nothing. An unknown file stops the build with one sentence that says what was expected
and what was found. Exit codes: 0 in place, 1 refused by a guard, 2 usage, 3 not writable.

Then `docker/patches/probe.py --device cpu|cuda` checks by behaviour that each does what it is for; those that
need a minute or more run in `make test` instead. Every probe fails on the package without its patch
(`tests/patches`). What was applied is recorded in the image as `/opt/kvshare/patches.json`, which every
engine reports in its fingerprint.

Nodes that share KV must run the same image: the layout of LMCache's objects is not the same on both devices.
With `packed-kv` a GPU's object holds K and V of each head side by side, in the CPU's it is K, then V.
"""


def render(patches: Iterable[Patch]) -> str:
    """The whole page in Markdown."""
    return "\n".join([HEAD, *(_section(patch) for patch in patches)])


def _section(patch: Patch) -> str:
    added = [
        f"| adds | `{added.module}`, sha256 `{sha256(added.content()).hexdigest()}` |"
        for added in patch.added
    ]
    lines = [
        f"## {patch.id}: {patch.title}",
        "",
        patch.reason,
        "",
        "| | |",
        "|---|---|",
        f"| images | {', '.join(sorted(patch.devices))} |",
        *(row for edit in patch.edits for row in _rows(patch, edit)),
        *added,
        f"| upstream | {patch.upstream} |",
        f"| probe | {patch.probe} |",
        f"| drop it when | {patch.drop_when} |",
        "",
        "What changes:",
        *(f"- {replacement.reason}" for edit in patch.edits for replacement in edit.replacements),
        "",
    ]
    return "\n".join(lines)


def _rows(patch: Patch, edit: Edit) -> list[str]:
    return [
        f"| file | `{edit.module}` of {patch.distribution} {patch.version} |",
        f"| sha256 before | `{edit.sha256_before}` |",
        f"| sha256 after | `{edit.sha256_after}` |",
    ]
