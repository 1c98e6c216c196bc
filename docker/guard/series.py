"""A series: a folder ``<distribution>-<version>`` of git-format diffs, in the order of its file ``series``.

A patch is a mail: a subject ``id: title``, a text, DEP-3's fields and ours, ``---``, the diff. A module that
it adds lies as a file of its own under ``files/``. Under ``tests/`` are upstream's own, which the source
distribution alone holds: no change to them is installed. ``SHA256SUMS`` names every file of the package
before and after the whole series, in the form of sha256sum: ``before/PATH`` and ``after/PATH``, or
``after-DEVICE/PATH`` where devices differ; a file that is added has no ``before/``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from guard.hunks import Hunk, HunkError, patched
from guard.hunks import read as read_hunks

FOLDER = Path(__file__).parents[1] / "patches"
DEVICES = ("cpu", "cuda")
TESTS = "tests/"
_FIELD = re.compile(r"(?P<name>[A-Z][A-Za-z-]+): (?P<value>.+(?:\n .+)*)\n?")


class SeriesError(Exception):
    """A file of a series cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class Patch:
    """One concern: ``head`` is the mail above ``---``, ``diff`` what is below; files are known by path."""

    id: str
    title: str
    head: str
    diff: str
    hunks: Mapping[str, tuple[Hunk, ...]]
    added: Mapping[str, bytes]

    @cached_property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """DEP-3's fields and ours, each with all its values, unfolded."""
        found: dict[str, tuple[str, ...]] = {}
        for field in _FIELD.finditer(self._parts[1]):
            value = " ".join(field["value"].split())
            found[field["name"]] = (*found.get(field["name"], ()), value)
        return found

    @property
    def text(self) -> str:
        """What is wrong and what changes, for people."""
        return self._parts[0]

    @property
    def whole_diff(self) -> str:
        """The diff with the files that are added in it, as git has it."""
        return "".join(_new_file(name, text.decode()) for name, text in self.added.items()) + self.diff

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the files of the package that it changes or adds."""
        return tuple(path for path in (*self.hunks, *self.added) if not path.startswith(TESTS))

    @property
    def tests(self) -> tuple[str, ...]:
        """Paths of upstream's tests that it changes or adds."""
        return tuple(path for path in (*self.hunks, *self.added) if path.startswith(TESTS))

    @property
    def devices(self) -> frozenset[str]:
        """Whose image it belongs in."""
        return frozenset(self._list("X-Kvshare-Devices"))

    @property
    def needs(self) -> frozenset[str]:
        """Ids of earlier patches that it stands on."""
        return frozenset(self._list("Needs"))

    @property
    def adds(self) -> tuple[str, ...]:
        """Paths of the files that it adds, as its header names them."""
        return self._list("X-Kvshare-Adds")

    @property
    def forwarded(self) -> str:
        """Whether it was offered upstream: ``no``, ``not-needed``, or where."""
        return self.field("Forwarded").partition("; ")[0]

    @property
    def probe(self) -> str:
        """Name of the module in docker/probes that shows what it is for."""
        return self.field("X-Kvshare-Probe").partition(";")[0]

    def applied(self, path: str, content: bytes | None) -> bytes | None:
        """A file's content with this patch, None where there is no file (yet). Raises HunkError."""
        if path in self.added:
            return self.added[path]
        if path not in self.hunks or content is None:
            return content
        return patched(content.decode(), self.hunks[path]).encode()

    def field(self, name: str) -> str:
        """The only value of a field; empty if there is none."""
        return next(iter(self.fields.get(name, ())), "")

    def _list(self, name: str) -> tuple[str, ...]:
        return tuple(self.field(name).split(", ")) if self.field(name) else ()

    @property
    def _parts(self) -> tuple[str, str]:
        """The text and the fields: the fields are the last paragraph."""
        _, _, body = self.head.partition("\n\n")
        text, _, fields = body.strip().rpartition("\n\n")
        return text, fields


def _new_file(name: str, text: str) -> str:
    lines = text.splitlines(keepends=True)
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n--- /dev/null\n+++ b/{name}\n"
    return f"{head}@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{line}" for line in lines)


@dataclass(frozen=True)
class Series:
    distribution: str
    version: str
    patches: tuple[Patch, ...]
    sums: Mapping[str, str]

    def only(self, keep: Callable[[Patch], bool]) -> Series:
        return replace(self, patches=tuple(patch for patch in self.patches if keep(patch)))

    def of(self, device: str) -> Series:
        return self.only(lambda patch: device in patch.devices)

    def without(self, *ids: str) -> Series:
        """The series without these patches and those that need them."""
        out = set(ids)
        for patch in self.patches:
            if patch.needs & out:
                out.add(patch.id)
        return self.only(lambda patch: patch.id not in out)

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of all files that it changes or adds, each once, in the order of the patches."""
        return tuple(dict.fromkeys(path for patch in self.patches for path in patch.files))

    @property
    def tests(self) -> tuple[str, ...]:
        """Paths of all of upstream's tests that it changes or adds, likewise."""
        return tuple(dict.fromkeys(path for patch in self.patches for path in patch.tests))

    def before(self, path: str) -> str | None:
        """The sha256 of a file as it is released; None for one that a patch adds."""
        return self.sums.get(f"before/{path}")

    def after(self, path: str, device: str) -> str:
        """The sha256 of a file once the whole series of a device is applied; empty if none is recorded."""
        return self.sums.get(f"after-{device}/{path}") or self.sums.get(f"after/{path}", "")

    def applied(self, path: str, content: bytes | None) -> bytes:
        """A file's content with every patch of it. Raises HunkError."""
        for patch in self.patches:
            content = patch.applied(path, content)
        assert content is not None
        return content


def load_all(folder: Path = FOLDER) -> tuple[Series, ...]:
    """Every series of the folder, by name. Raises SeriesError."""
    return tuple(load(order.parent) for order in sorted(folder.glob("*/series")))


def load(folder: Path) -> Series:
    """The series in a folder. Raises SeriesError."""
    distribution, _, version = folder.name.rpartition("-")
    try:
        names = (folder / "series").read_text().split()
        patches = tuple(read(folder / name) for name in names)
        return Series(distribution, version, patches, read_sums((folder / "SHA256SUMS").read_text()))
    except OSError as error:
        raise SeriesError(f"Expected a series in {folder}, but {error}; run `make patches`.") from None


def read(path: Path) -> Patch:
    """One patch. Raises OSError and SeriesError."""
    head, mark, diff = path.read_text().partition("\n---\n")
    subject = re.match(r"Subject: (?P<id>[a-z0-9-]+): (?P<title>.+)\n", head)
    if not mark or not subject or subject["id"] != path.stem:
        raise SeriesError(
            f"Expected 'Subject: {path.stem}: TITLE', a text, '---' and a diff in {path}; correct it."
        )
    try:
        patch = Patch(subject["id"], subject["title"], head, diff, read_hunks(diff), {})
    except HunkError as error:
        raise SeriesError(f"Expected a diff in {path}, but {error}; correct it.") from None
    return replace(patch, added={name: (path.parent / "files" / name).read_bytes() for name in patch.adds})


def read_sums(text: str) -> dict[str, str]:
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}


def render_sums(series: Series, originals: Mapping[str, bytes]) -> str:
    """SHA256SUMS of a series whose files are released with these contents. Raises HunkError."""
    lines = []
    for path in sorted(series.files):
        if path in originals:
            lines.append(f"{digest(originals[path])}  before/{path}")
        lines += _after(series, path, originals.get(path))
    return "".join(f"{line}\n" for line in lines)


def _after(series: Series, path: str, original: bytes | None) -> list[str]:
    found = {
        device: digest(series.of(device).applied(path, original))
        for device in DEVICES
        if path in series.of(device).files
    }
    if len(set(found.values())) == 1:
        return [f"{next(iter(found.values()))}  after/{path}"]
    return [f"{value}  after-{device}/{path}" for device, value in found.items()]


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def find(every: Iterable[Series], patch_id: str) -> Patch:
    """The patch of that id. Raises KeyError."""
    for series in every:
        for patch in series.patches:
            if patch.id == patch_id:
                return patch
    raise KeyError(patch_id)
