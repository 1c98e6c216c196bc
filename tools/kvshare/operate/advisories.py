"""What is in the images beside the advisories that are known of it, and how old that knowledge is.

Bills of materials: CycloneDX, https://cyclonedx.org/docs/1.5/json/. Advisories: OSV,
https://ossf.github.io/osv-schema/, or what a package index tells of each version.
"""

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import requests
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from kvshare.errors import CouldNotCheckError, KvshareError

ECOSYSTEM, PYPI, DEBIAN = "PyPI", "pkg:pypi/", "pkg:deb/"
KNOWN_TO_ALL = "pip"  # an index that serves advisories has something to say of it
ASKED_AT_ONCE, ANSWER_S = 8, 20.0


@dataclass(frozen=True, order=True)
class Package:
    """A Python distribution; ``version`` is without what a build has added to it, such as ``+cpu``."""

    name: str
    version: str


@dataclass(frozen=True)
class Bill:
    """What an image holds: Python's packages, and how many of Debian's."""

    image: str
    packages: tuple[Package, ...]
    debian: int


@dataclass(frozen=True)
class Advisory:
    """What is known to be wrong with one version of a package."""

    id: str
    summary: str = ""
    aliases: tuple[str, ...] = ()
    fixed_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """The advisories by package; ``source`` tells where they are from, ``modified`` when the newest was."""

    advisories: dict[Package, tuple[Advisory, ...]]
    source: str
    modified: datetime


@dataclass(frozen=True)
class _Event:
    introduced: str = ""
    fixed: str = ""
    last_affected: str = ""


@dataclass(frozen=True)
class _Range:
    type: str
    events: tuple[_Event, ...] = ()


@dataclass(frozen=True)
class _Of:
    ecosystem: str
    name: str


@dataclass(frozen=True)
class _Affected:
    package: _Of | None = None
    ranges: tuple[_Range, ...] = ()
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Record:
    id: str
    modified: datetime
    summary: str = ""
    aliases: tuple[str, ...] = ()
    withdrawn: datetime | None = None
    affected: tuple[_Affected, ...] = ()


def bill_of(image: str, text: str | bytes) -> Bill:
    """Return what a bill of materials lists; KvshareError if it is none, or lists no Python package."""
    try:
        urls = [str(component.get("purl", "")) for component in msgspec.json.decode(text)["components"]]
        packages = {_package(url) for url in urls if url.startswith(PYPI)}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise KvshareError(f"{image} has no bill of materials in CycloneDX's JSON.") from None
    if not packages:
        raise KvshareError(f"the bill of materials of {image} lists no Python package.")
    return Bill(image, tuple(sorted(packages)), sum(url.startswith(DEBIAN) for url in urls))


def from_file(path: Path, packages: Iterable[Package]) -> Findings:
    """Compare with OSV records: OSV's own dump of PyPI as a zip, a folder, or a file of one or a list.

    KvshareError if they cannot be read, or tell nothing of Python packages.
    """
    newest, found = None, dict[Package, tuple[Advisory, ...]]()
    by_name: dict[str, list[Package]] = {}
    for package in packages:
        by_name.setdefault(package.name, []).append(package)
    for record in _records(path):
        about = [a for a in record.affected if a.package and a.package.ecosystem == ECOSYSTEM]
        if not about:
            continue
        newest = max(newest or record.modified, record.modified)
        if record.withdrawn:
            continue
        for package in {p for a in about for p in by_name.get(_name(a), ())}:
            mine = [a for a in about if _name(a) == package.name and _affects(a, package.version)]
            if mine:
                fixed = tuple(dict.fromkeys(e.fixed for a in mine for e in _events(a) if e.fixed))
                advisory = Advisory(record.id, record.summary, record.aliases, fixed)
                found[package] = (*found.get(package, ()), advisory)
    if newest is None:
        raise KvshareError(f"{path} holds no OSV record of a package of PyPI: take OSV's dump of PyPI.")
    return Findings(found, str(path), newest)


def from_index(index: str, packages: Iterable[Package]) -> Findings:
    """Ask a package index of each version, by its JSON API; CouldNotCheckError if it serves no advisories."""
    base = index.rstrip("/").removesuffix("/simple")
    if _told(f"{base}/pypi/{KNOWN_TO_ALL}/json") is None:
        raise CouldNotCheckError(
            "the package index of PIP_INDEX_URL serves no advisories: "
            "give a file with them, ARGS='--advisories FILE', OSV's dump of PyPI."
        )

    def ask(package: Package) -> tuple[Advisory, ...]:
        told = _told(f"{base}/pypi/{package.name}/{package.version}/json") or ()
        return tuple(_advisory(each) for each in told if not each.get("withdrawn"))

    asked = list(packages)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        found = {p: told for p, told in zip(asked, pool.map(ask, asked), strict=True) if told}
    return Findings(found, "the package index", datetime.now(UTC))


def without(findings: Findings, ids: Sequence[str]) -> Findings:
    """Return the findings less the advisories of those ids or aliases."""
    kept = {
        package: tuple(a for a in advisories if not {a.id, *a.aliases} & set(ids))
        for package, advisories in findings.advisories.items()
    }
    kept = {package: advisories for package, advisories in kept.items() if advisories}
    return replace(findings, advisories=kept)


def lines(bills: Sequence[Bill], findings: Findings, now: datetime) -> Iterator[str]:
    """Say what was compared with what, how old that is, and each advisory with the images it concerns."""
    for bill in bills:
        yield f"{bill.image}: {len(bill.packages)} Python packages compared, {bill.debian} of Debian's not"
    days = max(0, (now - findings.modified).days)
    yield (
        f"advisories of {findings.source}, the newest of {findings.modified:%Y-%m-%d}, "
        f"{days} {'day' if days == 1 else 'days'} old"
    )
    for package, advisories in sorted(findings.advisories.items()):
        images = ", ".join(bill.image for bill in bills if package in bill.packages)
        for advisory in advisories:
            names = ", ".join((advisory.id, *advisory.aliases))
            cure = (
                f"fixed in {', '.join(advisory.fixed_in)}" if advisory.fixed_in else "no fixed release told"
            )
            about = " ".join(advisory.summary.split()) or "no summary"
            yield f"× {package.name} {package.version} in {images}: {names}: {about}; {cure}"
    count = len({package for bill in bills for package in bill.packages})
    concerned = len(findings.advisories)
    yield f"{concerned} of {count} packages {'has' if concerned == 1 else 'have'} known advisories"


def _package(url: str) -> Package:
    name, _, version = unquote(url.removeprefix(PYPI).partition("?")[0]).partition("@")
    return Package(canonicalize_name(name), version.partition("+")[0])


def _records(path: Path) -> Iterator[_Record]:
    try:
        if path.is_dir():
            for file in sorted(path.glob("*.json")):
                yield from _decoded(file.read_bytes())
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".json"):
                        yield from _decoded(archive.read(name))
        else:
            yield from _decoded(path.read_bytes())
    except OSError as error:
        raise KvshareError(f"the advisories in {path} cannot be read: {error.strerror}.") from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise KvshareError(f"{path} holds no OSV records: {error}.") from None


def _decoded(text: bytes) -> list[_Record]:
    if text.lstrip().startswith(b"["):
        return msgspec.json.decode(text, type=list[_Record])
    return [msgspec.json.decode(text, type=_Record)]


def _name(affected: _Affected) -> str:
    return canonicalize_name(affected.package.name) if affected.package else ""


def _events(affected: _Affected) -> Iterator[_Event]:
    for each in affected.ranges:
        if each.type == "ECOSYSTEM":
            yield from each.events


def _affects(affected: _Affected, version: str) -> bool:
    """Whether a version is listed or within a range, as OSV's specification evaluates them."""
    if version in affected.versions:
        return True
    this = _version(version)
    if this is None:
        return False
    if any(_version(listed) == this for listed in affected.versions):
        return True
    return any(_within(each.events, this) for each in affected.ranges if each.type == "ECOSYSTEM")


def _within(events: Sequence[_Event], this: Version) -> bool:
    """Whether the last event up to a version has it affected."""
    marks = []
    for event in events:
        at = _version(event.introduced or event.fixed or event.last_affected)
        if at is not None:
            marks.append((at, event))
    affected = False
    for at, event in sorted(marks, key=lambda mark: mark[0]):
        if event.last_affected:
            affected = affected and this <= at
        elif this >= at:
            affected = bool(event.introduced)
    return affected


def _version(text: str) -> Version | None:
    try:
        return Version("0.dev0" if text == "0" else text)  # OSV's 0 is before everything
    except InvalidVersion:
        return None


def _told(url: str) -> list[dict[str, Any]] | None:
    """Return the advisories that an index tells, or None if it tells none of anything there."""
    try:
        answer = requests.get(url, timeout=ANSWER_S)
    except requests.RequestException as error:
        raise CouldNotCheckError(
            f"the package index of PIP_INDEX_URL does not answer ({type(error).__name__}): "
            "give a file with advisories, ARGS='--advisories FILE', OSV's dump of PyPI."
        ) from None
    try:
        told = answer.json().get("vulnerabilities") if answer.status_code == 200 else None
    except (ValueError, AttributeError):
        return None
    return told if isinstance(told, list) else None


def _advisory(told: dict[str, Any]) -> Advisory:
    return Advisory(
        str(told.get("id", "")),
        str(told.get("summary") or told.get("details") or "")[:200],
        tuple(map(str, told.get("aliases") or ())),
        tuple(map(str, told.get("fixed_in") or ())),
    )
