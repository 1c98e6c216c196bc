"""Applies patches under guard: every file is known, or nothing is written.

A file is patched only if the sha256 of all of it is the known one, each text to exchange stands in it
exactly once, and the result compiles and has the known sha256. Several patches may change one file: each then
knows it as the one before left it. All patches are worked out before the first byte is written; what was
written is taken back if a later write fails.
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

from patch import AddedFile, Edit, Patch


class RefusedError(Exception):
    """A guard met something unknown; the message is one sentence for the person who moved a version."""


@dataclass(frozen=True)
class Change:
    """What one patch does to one file: the content now (None if there is no such file yet) and afterwards."""

    patch_id: str
    path: Path
    relative: str
    before: bytes | None
    after: bytes
    sha256_before: str | None
    sha256_after: str
    applied: bool


def plan(patches: Iterable[Patch], site: Path | None = None) -> list[Change]:
    """Work out every change, writing nothing.

    ``site`` is the folder that holds the package (default: sys.path). Raises RefusedError.
    """
    patches = list(patches)
    changes: list[Change] = []
    for patch in patches:
        package = _find_package(patch, site)
        _check_version(patch, package)
        changes += [_plan_edit(patch, edit, package, patches, changes) for edit in patch.edits]
        changes += [_plan_added(patch, added, package) for added in patch.added]
    return changes


def commit(changes: Iterable[Change]) -> None:
    """Write every change that is not applied yet, each by rename, and compile it; all or nothing.

    Whatever interrupts it, what was already written is taken back first. Raises OSError.
    """
    last = {change.path: change for change in changes}  # a file of several patches is written once
    todo = [change for change in last.values() if change.before != change.after]
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


def _plan_edit(
    patch: Patch, edit: Edit, package: Path, patches: list[Patch], planned: list[Change]
) -> Change:
    path = _file_of(package, edit.module)
    if not path.is_file():
        raise RefusedError(
            f"{_expects(patch, edit)}, but there is no {path}; "
            "adapt the patch to this release or pin the old one."
        )
    before = path.read_bytes()
    current = next((change.after for change in reversed(planned) if change.path == path), before)
    applied = _hash(before) in _results_from(patch, edit, patches)
    after = before if applied else patched(patch, edit, path, current)
    return Change(
        patch.id,
        path,
        _relative(path, package),
        before,
        after,
        edit.sha256_before,
        edit.sha256_after,
        applied,
    )


def _results_from(patch: Patch, edit: Edit, patches: list[Patch]) -> set[str]:
    """The hashes that the edit's file has once this patch, or it and later ones, are in it."""
    later = patches[patches.index(patch) + 1 :]
    same_file = (e for p in later for e in p.edits if e.module == edit.module)
    return {edit.sha256_after, *(e.sha256_after for e in same_file)}


def patched(patch: Patch, edit: Edit, path: Path, before: bytes) -> bytes:
    """The content of the file at ``path`` once edited; raises RefusedError."""
    if _hash(before) != edit.sha256_before:
        raise RefusedError(
            f"{_expects(patch, edit)} with sha256 {edit.sha256_before}, but {path} has {_hash(before)}; "
            "reinstall that release, or adapt the patch to this file."
        )
    text = before.decode()
    for number, replacement in enumerate(edit.replacements, start=1):
        found = text.count(replacement.old)
        if found != 1:
            raise RefusedError(
                f"{_expects(patch, edit)} to hold the text of replacement {number} exactly once, "
                f"but it stands {found} times in {path}; adapt the patch to this file."
            )
        text = text.replace(replacement.old, replacement.new)
    after = text.encode()
    _check_compiles(patch, edit, after, path)
    if _hash(after) != edit.sha256_after:
        raise RefusedError(
            f"{_expects(patch, edit)} to become sha256 {edit.sha256_after}, "
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
    _check_compiles(patch, patch.edits[0], after, path)
    return Change(
        patch.id, path, _relative(path, package), before, after, None, _hash(after), before == after
    )


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


def _check_compiles(patch: Patch, edit: Edit, source: bytes, path: Path) -> None:
    try:
        compile(source, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        raise RefusedError(
            f"{_expects(patch, edit)}, but the patched {path} does not compile ({error}); correct the patch."
        ) from error


def _expects(patch: Patch, edit: Edit | None = None) -> str:
    return f"Patch {patch.id} expects {(edit or patch).module} of {patch.distribution} {patch.version}"


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
