"""What a patch is: exact text of one upstream file, exchanged for other text, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Replacement:
    """``old`` stands exactly once in the file and becomes ``new``."""

    old: str
    new: str
    reason: str


@dataclass(frozen=True)
class AddedFile:
    """A file of ours, ``source`` beside this module, that the patch puts into the package as ``module``."""

    source: str
    module: str

    def content(self) -> bytes:
        return (HERE / self.source).read_bytes()


@dataclass(frozen=True)
class Edit:
    """A change to one module; both hashes are of the whole file, the earlier patches' changes included."""

    module: str
    sha256_before: str
    sha256_after: str
    replacements: tuple[Replacement, ...]


@dataclass(frozen=True)
class Patch:
    """A change to a module of one version of a distribution, and to others if it has ``more``.

    ``devices`` are the images it belongs in: ``cpu``, ``cuda``.
    """

    id: str
    devices: frozenset[str]
    distribution: str
    version: str
    module: str
    sha256_before: str
    sha256_after: str
    replacements: tuple[Replacement, ...]
    title: str
    reason: str
    upstream: str
    probe: str
    drop_when: str
    added: tuple[AddedFile, ...] = ()
    more: tuple[Edit, ...] = ()

    @property
    def edits(self) -> tuple[Edit, ...]:
        return (Edit(self.module, self.sha256_before, self.sha256_after, self.replacements), *self.more)
