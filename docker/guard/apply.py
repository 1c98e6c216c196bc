"""Puts the patches of a device into the installed packages: all of them, or nothing.

A file is patched only if the sha256 of all of it is the known one, the text of each hunk stands in it exactly
once (or also at the hunk's own line), each result compiles, and the last has the known sha256. All files are
worked out before the first byte is written; what was written is taken back if a later write fails.
"""

from __future__ import annotations

import py_compile
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from guard.hunks import HunkError
from guard.series import Patch, Series, digest


class RefusedError(Exception):
    """A guard met something unknown; the message is one sentence for the person who moved a version."""


@dataclass(frozen=True)
class Change:
    """What the patches do to one file: the content now (None if there is no such file yet) and afterwards.

    ``name`` is its path in the folder of the packages, ``sha256_before`` None for a file that a patch adds.
    """

    patches: tuple[str, ...]
    path: Path
    name: str
    before: bytes | None
    after: bytes
    sha256_before: str | None

    @property
    def sha256_after(self) -> str:
        return digest(self.after)

    @property
    def applied(self) -> bool:
        return self.before == self.after


def plan(every: Iterable[Series], device: str, site: Path | None = None) -> list[Change]:
    """Work out every change, writing nothing.

    ``site`` is the folder that holds the packages (default: sys.path). Raises RefusedError.
    """
    chosen = [series.of(device) for series in every]
    return [_plan_file(_File(series, name, device, site)) for series in chosen for name in series.files]


def commit(changes: Iterable[Change]) -> None:
    """Write every change that is not applied yet, each by rename, and compile it; all or nothing.

    Whatever interrupts it, what was already written is taken back first. Raises OSError.
    """
    todo = [change for change in changes if not change.applied]
    staged: list[Path] = []
    done: list[Change] = []
    try:
        for change in todo:
            staged.append(_beside(change.path))
            _write_like(change.path, staged[-1], change.after)
        for temporary, change in zip(staged, todo, strict=True):
            done.append(change)
            temporary.replace(change.path)
        for change in todo:
            _compile(change.path)
    except BaseException:
        for change in done:
            _restore(change)
        raise
    finally:
        for temporary in staged:
            temporary.unlink(missing_ok=True)


class _File:
    """One file of a series, installed; its package is there in the right version. Raises RefusedError."""

    def __init__(self, series: Series, name: str, device: str, site: Path | None) -> None:
        self.series = series
        self.name = name
        self.patches = tuple(patch for patch in series.patches if name in patch.files)
        self.is_added = any(name in patch.added for patch in self.patches)
        folder = self._folder(site)
        self._check_version(folder)
        self.path = folder / name
        self.sha256_before = series.before(name)
        self.sha256_after = series.after(name, device)
        if not self.sha256_after or (self.sha256_before is None) != self.is_added:
            raise RefusedError(f"{self.expects()}, but SHA256SUMS does not know it; run `make patches`.")

    def expects(self, patch: Patch | None = None) -> str:
        patch = patch or self.patches[0]
        return f"Patch {patch.id} expects {self.name} of {self.series.distribution} {self.series.version}"

    def _folder(self, site: Path | None) -> Path:
        """Where the package lies. Only that is looked up: finding a submodule would import the package."""
        package = self.name.partition("/")[0]
        spec = PathFinder.find_spec(package, None if site is None else [str(site)])
        if spec is None or not spec.submodule_search_locations:
            raise RefusedError(
                f"{self.expects()}, but no package {package} is in {site or sys.path}; "
                "install it or give --site."
            )
        return Path(spec.submodule_search_locations[0]).parent

    def _check_version(self, folder: Path) -> None:
        distribution = self.series.distribution
        found = {dist.version for dist in metadata.distributions(name=distribution, path=[str(folder)])}
        if found != {self.series.version}:
            versions = ", ".join(sorted(found)) or "no version"
            raise RefusedError(
                f"{self.expects()}, but {versions} of {distribution} is installed in {folder}; "
                "adapt the patch to this release or pin the old one."
            )


def _plan_file(file: _File) -> Change:
    before = file.path.read_bytes() if file.path.is_file() else None
    after = before if before and digest(before) == file.sha256_after else _patched(file, before)
    names = tuple(patch.id for patch in file.patches)
    return Change(names, file.path, file.name, before, after, file.sha256_before)


def _patched(file: _File, before: bytes | None) -> bytes:
    """The content of the file once all its patches are applied. Raises RefusedError."""
    _check_before(file, before)
    content = before
    for patch in file.patches:
        content = _patched_once(file, patch, content)
    assert content is not None
    if digest(content) != file.sha256_after:
        raise RefusedError(
            f"{file.expects(file.patches[-1])} to become sha256 {file.sha256_after}, "
            f"but {file.path} would become {digest(content)}; "
            "review the result, then let `make patches` record its hash."
        )
    return content


def _check_before(file: _File, before: bytes | None) -> None:
    if file.is_added and before is not None:
        raise RefusedError(
            f"{file.expects()} to be added, but another file is already at {file.path}; "
            "reinstall that release, or drop the patch if upstream now ships the module."
        )
    if not file.is_added and before is None:
        raise RefusedError(
            f"{file.expects()}, but there is no {file.path}; "
            "adapt the patch to this release or pin the old one."
        )
    if before is not None and digest(before) != file.sha256_before:
        raise RefusedError(
            f"{file.expects()} with sha256 {file.sha256_before}, but {file.path} has {digest(before)}; "
            "reinstall that release, or adapt the patch to this file."
        )


def _patched_once(file: _File, patch: Patch, content: bytes | None) -> bytes | None:
    try:
        content = patch.applied(file.name, content)
        compile(content or b"", str(file.path), "exec")
    except HunkError as error:
        raise RefusedError(
            f"{file.expects(patch)} to hold {error} in {file.path}; adapt the patch to this file."
        ) from error
    except (SyntaxError, ValueError) as error:
        raise RefusedError(
            f"{file.expects(patch)}, but the patched {file.path} does not compile ({error}); "
            "correct the patch."
        ) from error
    return content


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.patching")


def _write_like(path: Path, temporary: Path, content: bytes) -> None:
    """Write ``content`` to ``temporary``, with the mode of ``path`` if that exists."""
    temporary.write_bytes(content)
    if path.exists():
        shutil.copymode(path, temporary)


def _restore(change: Change) -> None:
    if change.before is None:
        change.path.unlink(missing_ok=True)
    else:
        _write_like(change.path, _beside(change.path), change.before)
        _beside(change.path).replace(change.path)


def _compile(path: Path) -> None:
    # By hash, not by time: image layers keep whole seconds, and an old .pyc must never outlive its source.
    py_compile.compile(str(path), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
