"""Applies patches under guard: every file is known, or nothing is written.

A file is patched only if the sha256 of all of it is the known one, each text to exchange stands in it
exactly once, and the result compiles and has the known sha256. All patches are worked out before the
first byte is written; what was written is taken back if a later write fails.
"""

from __future__ import annotations

import py_compile
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from patch import AddedFile, Patch


class RefusedError(Exception):
    """A guard met something unknown; the message is one sentence for the person who moved a version."""


@dataclass(frozen=True)
class Change:
    """One file: its content now (None if there is no such file yet) and its content once patched."""

    patch_id: str
    path: Path
    relative: str
    before: bytes | None
    after: bytes
    sha256_before: str | None

    @property
    def applied(self) -> bool:
        return self.before == self.after

    @property
    def sha256_after(self) -> str:
        return sha256(self.after).hexdigest()


def plan(patches: Iterable[Patch], site: Path | None = None) -> list[Change]:
    """Work out every change, writing nothing.

    ``site`` is the folder that holds the package (default: sys.path). Raises RefusedError.
    """
    return [change for patch in patches for change in _plan_one(patch, site)]


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


def _plan_one(patch: Patch, site: Path | None) -> list[Change]:
    package = _find_package(patch, site)
    _check_version(patch, package)
    path = _file_of(package, patch.module)
    if not path.is_file():
        raise RefusedError(
            f"{_expects(patch)}, but there is no {path}; adapt the patch to this release or pin the old one."
        )
    before = path.read_bytes()
    after = before if _hash(before) == patch.sha256_after else patched(patch, path, before)
    change = Change(patch.id, path, _relative(path, package), before, after, patch.sha256_before)
    return [change, *(_plan_added(patch, added, package) for added in patch.added)]


def patched(patch: Patch, path: Path, before: bytes) -> bytes:
    """The content of the upstream file at ``path`` once patched; raises RefusedError."""
    if _hash(before) != patch.sha256_before:
        raise RefusedError(
            f"{_expects(patch)} with sha256 {patch.sha256_before}, but {path} has {_hash(before)}; "
            "reinstall that release, or adapt the patch to this file."
        )
    text = before.decode()
    for number, replacement in enumerate(patch.replacements, start=1):
        found = text.count(replacement.old)
        if found != 1:
            raise RefusedError(
                f"{_expects(patch)} to hold the text of replacement {number} exactly once, "
                f"but it stands {found} times in {path}; adapt the patch to this file."
            )
        text = text.replace(replacement.old, replacement.new)
    after = text.encode()
    _check_compiles(patch, after, path)
    if _hash(after) != patch.sha256_after:
        raise RefusedError(
            f"{_expects(patch)} to become sha256 {patch.sha256_after}, "
            f"but {path} would become {_hash(after)}; review the result, then record its hash in the patch."
        )
    return after


def _plan_added(patch: Patch, added: AddedFile, package: Path) -> Change:
    path = _file_of(package, added.module)
    after = added.content()
    before = path.read_bytes() if path.exists() else None
    if before not in (None, after):
        raise RefusedError(
            f"{_expects(patch)} and adds {added.module}, but another file is already at {path}; "
            "reinstall that release, or drop the patch if upstream now ships the module."
        )
    _check_compiles(patch, after, path)
    return Change(patch.id, path, _relative(path, package), before, after, None)


def _find_package(patch: Patch, site: Path | None) -> Path:
    """The package's folder. Only the top level is looked up: finding a submodule would import the package."""
    name = patch.module.partition(".")[0]
    spec = PathFinder.find_spec(name, None if site is None else [str(site)])
    if spec is None or not spec.submodule_search_locations:
        raise RefusedError(
            f"{_expects(patch)}, but no package {name} is in {site or sys.path}; install it or give --site."
        )
    return Path(spec.submodule_search_locations[0])


def _check_version(patch: Patch, package: Path) -> None:
    found = {
        dist.version for dist in metadata.distributions(name=patch.distribution, path=[str(package.parent)])
    }
    if found != {patch.version}:
        versions = ", ".join(sorted(found)) or "no version"
        raise RefusedError(
            f"{_expects(patch)}, but {versions} of {patch.distribution} is installed in {package.parent}; "
            "adapt the patch to this release or pin the old one."
        )


def _check_compiles(patch: Patch, source: bytes, path: Path) -> None:
    try:
        compile(source, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        raise RefusedError(
            f"{_expects(patch)}, but the patched {path} does not compile ({error}); correct the patch."
        ) from error


def _expects(patch: Patch) -> str:
    return f"Patch {patch.id} expects {patch.module} of {patch.distribution} {patch.version}"


def _file_of(package: Path, module: str) -> Path:
    """The source file of a dotted module: a package's __init__.py, else NAME.py."""
    path = package.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


def _relative(path: Path, package: Path) -> str:
    return path.relative_to(package.parent).as_posix()


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()


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
