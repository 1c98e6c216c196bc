"""docs/patches.md, made from the headers of the patches."""

from __future__ import annotations

from collections.abc import Iterable

from guard import upstream
from guard.series import Patch, Series

HEAD = """\
# Patches

Made by `make generate` from the headers in `docker/patches`; a test compares.

Each folder `<distribution>-<version>` there holds a series of git-format diffs, modules that they add
under `files/`, and `SHA256SUMS`. They are applied while an image is built (`python -m guard --device
cpu|cuda`), under guard: the distribution has that version, the sha256 of each whole file is the known
one, the text of each hunk stands in it exactly once or also at its line, the result compiles and has the
known sha256, and nothing is written unless all of it can be. A second run changes nothing. An unknown
file stops the build with one sentence that says what was expected and what was found. Exit codes: 0 in
place, 1 refused by a guard, 2 usage, 3 not writable.

Then `python -m probes --device cpu|cuda` checks by behaviour that each does what it is for; those that
need a minute or more run in `make test` instead. Every probe fails on the package without its patch
(`tests/patches`). What was applied is recorded in the image as `/opt/kvshare/patches.json`, which every
engine reports in its fingerprint.

To change one: `make patches-edit` unpacks the locked wheels into `build/patches` as git repositories, a
commit a patch; amend, rebase or add commits there, then `make patches` writes the series and the sums
back. LMCache's own tests lie there too, from its source distribution: a patch that changes what one of
them holds changes the test (`make test-upstream`). A patch that cures a fault names the advice that is
wrong from then on (`X-Kvshare-Obsolete`), and a test holds that nothing gives it.

Nodes that share KV must run the same image: the layout of LMCache's objects is not the same on both
devices. With `packed-kv` a GPU's object holds K and V of each head side by side, in the CPU's it is K,
then V.
"""


def render(every: Iterable[Series]) -> str:
    """The whole page in Markdown."""
    return "\n".join([HEAD, *(_section(series, patch) for series in every for patch in series.patches)])


def _section(series: Series, patch: Patch) -> str:
    rows = {
        "of": f"{series.distribution} {series.version}",
        "images": ", ".join(sorted(patch.devices)),
        "changes": _names(name for name in patch.files if name not in patch.added),
        "adds": _names(name for name in patch.files if name in patch.added),
        "upstream's tests": _names(patch.tests),
        "needs": _names(sorted(patch.needs)),
        "reported as": ", ".join(f"<{url}>" for url in patch.fields.get("Bug", ())),
        "forwarded": _forwarded(patch),
        "probe": patch.field("X-Kvshare-Probe").partition("; ")[2],
        "drop it when": patch.field("X-Kvshare-Drop-When"),
    }
    table = [f"| {name} | {value} |" for name, value in rows.items() if value]
    lines = [f"## {patch.id}: {patch.title}", "", patch.text, "", "| | |", "|---|---|", *table, ""]
    return "\n".join(lines)


def _forwarded(patch: Patch) -> str:
    text = f" ([text](upstream/{patch.id}.md))" if patch.forwarded == upstream.NEVER else ""
    return patch.field("Forwarded") + text


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
