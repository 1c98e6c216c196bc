"""Edit the series with git: `open` makes a repository a series, a commit a patch; `save` writes them back.

The repositories lie in build/patches. There amend, reorder, add and rebase commits as you like: the first is
the release, each of the others a patch, whose message is the patch's header.

exit codes: 0 done; 1 refused, with one sentence that says why; 2 wrong usage
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from guard import source
from guard.hunks import HunkError
from guard.series import FOLDER, Patch, Series, SeriesError, load_all, render_sums
from guard.series import read as read_patch
from guard.source import SourceError

ROOT = FOLDER.parents[1]
# The CPU's names packages that no GPU's image has.
LOCKS = tuple(ROOT / f"docker/locks/engine-{device}.txt" for device in ("cuda", "cpu"))
WORK = ROOT / "build/patches"
# Commits are made under no person's name; in the patches there is none either.
IDENTITY = ("-c", "user.name=kvshare", "-c", "user.email=kvshare@localhost")
RELEASE = "The release, as its wheel has it"


class EditError(Exception):
    """Something is not as it should be; the message is one sentence."""


def open_series(series: Series, wheel: Path, work: Path, archive: Path | None = None) -> None:
    """Make the repository ``work`` of the wheel's Python files and a commit a patch. Raises EditError.

    ``archive`` is the source distribution, whose tests lie beside the package then.
    """
    if work.exists():
        raise EditError(f"{work} is there already: save it with `make patches`, or remove it to begin anew.")
    work.mkdir(parents=True)
    git(work, "init", "--quiet", "--initial-branch=series")
    commit_release(work, wheel, archive)
    for patch in series.patches:
        git(work, *IDENTITY, "am", "--quiet", "--whitespace=nowarn", stdin=mail(patch))


def commit_release(work: Path, wheel: Path, archive: Path | None) -> None:
    """Commit what a release has, in an empty working tree. Raises EditError."""
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(work, [name for name in packed.namelist() if name.endswith(".py")])
    if archive:
        source.unpack(archive, work, "tests")
    git(work, "add", "--all")
    git(work, *IDENTITY, "commit", "--quiet", f"--message={RELEASE}")


def mail(patch: Patch) -> str:
    """The patch as one mail that `git am` takes, the files that it adds in its diff."""
    return f"From: kvshare <kvshare@localhost>\n{patch.head}\n---\n{patch.whole_diff}"


def save(work: Path, folder: Path) -> None:
    """Write the commits of the repository ``work`` as the series in ``folder``. Raises EditError."""
    if git(work, "status", "--porcelain"):
        raise EditError(f"{work} has changes in no commit: commit them, or take them back.")
    release, *commits = git(work, "rev-list", "--reverse", "HEAD").split()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as made:
        new = Path(made) / folder.name
        new.mkdir()
        patches = [_write_patch(work, commit, new) for commit in commits]
        (new / "series").write_text("".join(f"{patch.id}.patch\n" for patch in patches))
        distribution, _, version = folder.name.rpartition("-")
        series = Series(distribution, version, tuple(patches), {})
        (new / "SHA256SUMS").write_text(render_sums(series, _originals(work, release, series)))
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def _write_patch(work: Path, commit: str, folder: Path) -> Patch:
    """Write one commit as a patch, and the files that it adds; raises EditError and SeriesError."""
    head = f"Subject: {git(work, 'log', '-1', '--format=%B', commit).strip()}"
    identity = re.match(r"Subject: ([a-z0-9-]+): ", head)
    if not identity:
        raise EditError(
            f"Expected the subject 'id: title' and found '{head.splitlines()[0]}' in {work}; reword it."
        )
    kinds = git(
        work, "diff-tree", "-r", "--no-commit-id", "--name-status", "--no-renames", commit
    ).splitlines()
    by_kind = {name: kind for kind, name in (line.split("\t") for line in kinds)}
    added = [name for name, kind in by_kind.items() if kind == "A"]
    for name in added:
        target = folder / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(git(work, "show", f"{commit}:{name}"))
    changed = [name for name in by_kind if name not in added]
    path = folder / f"{identity[1]}.patch"
    path.write_text(f"{head}\n---\n{_diff(work, commit, changed)}")
    patch = read_patch(path)
    if set(patch.adds) != set(added):
        raise EditError(
            f"Patch {patch.id} adds {', '.join(added) or 'no file'}: say so in its X-Kvshare-Adds."
        )
    return patch


def _diff(work: Path, commit: str, names: Sequence[str]) -> str:
    """The commit's changes to these files, without git's ids, which change with every rebase."""
    if not names:
        return ""
    options = ("--no-renames", "--no-ext-diff", "--no-color", "--diff-algorithm=myers", "--unified=3")
    lines = git(work, "diff", *options, f"{commit}^", commit, "--", *names).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("diff --git ", "index ")))


def _originals(work: Path, release: str, series: Series) -> dict[str, bytes]:
    there = set(git(work, "ls-tree", "-r", "--name-only", release).splitlines())
    return {name: git(work, "show", f"{release}:{name}").encode() for name in series.files if name in there}


def fetch(series: Series, folder: Path, locks: Sequence[Path] = LOCKS) -> Path:
    """Download the locked wheel of a series' distribution into the folder. Raises EditError."""
    wanted = rf"^{re.escape(series.distribution)}==(\S+) (?:\\\n +--hash=\S+ ?)+"
    pinned = next(filter(None, (re.search(wanted, lock.read_text(), re.M) for lock in locks)), None)
    if not pinned or pinned[1] != series.version:
        found = pinned[1] if pinned else "none"
        raise EditError(
            f"Expected {series.distribution} {series.version} in {' or '.join(map(str, locks))} "
            f"and found {found}: move one of them."
        )
    requirement = folder / "requirement.txt"
    requirement.write_text(pinned[0])
    options = ("--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version=3.11", "--quiet")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        f"--requirement={requirement}",
        f"--dest={folder}",
    ]
    if subprocess.run(command, check=False).returncode:
        raise EditError(f"The wheel of {series.distribution} {series.version} was not downloaded: see above.")
    return next(folder.glob(f"{series.distribution.replace('-', '_')}-*.whl"))


def git(work: Path, *arguments: str, stdin: str | None = None) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=work, input=stdin, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise EditError(f"`git {' '.join(arguments)}` failed in {work}: {result.stderr.strip()}")
    return result.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m guard.edit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("open", "save"))
    options = parser.parse_args(arguments)
    try:
        for series in load_all():
            work = WORK / f"{series.distribution}-{series.version}"
            if options.what == "open":
                with tempfile.TemporaryDirectory() as folder:
                    open_series(series, fetch(series, Path(folder)), work, source.fetch(series))
                print(f"{work.relative_to(ROOT)}: a commit a patch; `make patches` saves them")
            else:
                if not work.exists():
                    raise EditError(f"There is no {work}: run `make patches-edit` first.")
                save(work, FOLDER / work.name)
    except (EditError, SeriesError, HunkError, SourceError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
