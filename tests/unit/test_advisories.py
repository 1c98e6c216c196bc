"""`kvshare sbom-check`: a package with an advisory is red, its neighbours are not, and their age is said."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvshare import cli
from kvshare.errors import KvshareError
from kvshare.operate.advisories import Package, bill_of, from_file, lines

ABOUT = {
    "id": "PYSEC-2026-1", "modified": "2026-11-20T10:00:00Z", "aliases": ["CVE-2026-1"],
    "summary": "a sandbox that is none", "affected": [{
        "package": {"ecosystem": "PyPI", "name": "Some_Package"},
        "ranges": [{"type": "ECOSYSTEM", "events": [
            {"introduced": "0"}, {"fixed": "1.9"}, {"introduced": "2.0rc1"}, {"fixed": "2.10"}]}],
    }],
}  # fmt: skip


def bill(**packages: str) -> str:
    urls = [f"pkg:pypi/{name}@{version}" for name, version in packages.items()]
    return json.dumps(
        {"components": [{"purl": url} for url in (*urls, "pkg:deb/debian/libc6@2.36?arch=amd64")]}
    )


def file(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "osv.json"
    path.write_text(json.dumps(records))
    return path


def advisories_of(folder: Path, version: str, about: dict[str, Any] = ABOUT) -> int:
    package = Package("some-package", version)
    return len(from_file(file(folder, about), [package]).advisories.get(package, ()))


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("0.1", 1),
        ("1.8.9", 1),
        ("1.9", 0),
        ("1.10", 0),
        ("2.0rc1", 1),
        ("2.9", 1),
        ("2.10", 0),
        ("2.10.1", 0),
    ],
)
def test_a_version_within_a_range_is_affected(tmp_path: Path, version: str, found: int) -> None:
    assert advisories_of(tmp_path, version) == found


@pytest.mark.parametrize(("version", "found"), [("1.0", 1), ("1.2", 1), ("1.2.1", 0)])
def test_the_last_affected_version_still_is(tmp_path: Path, version: str, found: int) -> None:
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "1"}, {"last_affected": "1.2"}]}]
    affected = [{"package": {"ecosystem": "PyPI", "name": "some.package"}, "ranges": ranges}]
    assert advisories_of(tmp_path, version, {**ABOUT, "affected": affected}) == found


def test_a_listed_version_is_affected_and_other_ecosystems_and_commits_are_not_ours(tmp_path: Path) -> None:
    mine = {"package": {"ecosystem": "PyPI", "name": "some-package"}, "versions": ["1.0", "odd version"]}
    others = {
        "package": {"ecosystem": "npm", "name": "some-package"}, "versions": ["3.0"],
        "ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}],
    }  # fmt: skip
    record = {**ABOUT, "affected": [mine, others]}
    assert [advisories_of(tmp_path, version, record) for version in ("1", "3.0")] == [1, 0]


def test_a_withdrawn_advisory_is_none(tmp_path: Path) -> None:
    assert advisories_of(tmp_path, "2.0", {**ABOUT, "withdrawn": "2026-11-21T00:00:00Z"}) == 0


def test_what_a_build_adds_to_a_version_does_not_hide_it() -> None:
    assert bill_of("x", bill(torch="2.13.0%2Bcpu")).packages == (Package("torch", "2.13.0"),)


def check(folder: Path, *options: str, index: str = "", **packages: str) -> Result:
    (folder / "sbom.json").write_text(bill(**packages))
    arguments = ["sbom-check", "--sbom", str(folder / "sbom.json"), *options]
    result = CliRunner().invoke(cli.main, arguments, env={"PIP_INDEX_URL": index})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_an_image_with_an_affected_package_is_red_and_says_which(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("PYSEC-2026-1.json", json.dumps(ABOUT))
    result = check(tmp_path, "--advisories", str(tmp_path / "all.zip"), some_package="2.9", other="1.0")
    assert result.exit_code == 1
    assert "1 of 2 packages has known advisories" in result.stdout
    assert "some-package 2.9 in" in result.stdout
    assert "PYSEC-2026-1, CVE-2026-1: a sandbox that is none; fixed in 1.9, 2.10" in result.stdout


def test_without_an_affected_package_or_with_one_that_was_looked_at_it_is_green(tmp_path: Path) -> None:
    path = str(file(tmp_path, ABOUT))
    assert check(tmp_path, "--advisories", path, some_package="2.10").exit_code == 0
    ignored = check(tmp_path, "--advisories", path, "--ignore", "CVE-2026-1", some_package="2.9")
    assert ignored.exit_code == 0
    assert "0 of 1 packages have known advisories" in ignored.stdout


def test_how_old_the_advisories_are_is_said(tmp_path: Path) -> None:
    older = {**ABOUT, "id": "PYSEC-2026-0", "modified": "2026-01-01T00:00:00Z"}
    findings = from_file(file(tmp_path, ABOUT, older), [])
    said = list(lines([], findings, datetime(2026, 11, 27, 12, tzinfo=UTC)))
    assert "the newest of 2026-11-20, 7 days old" in said[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no json", "holds no OSV records"),
        ('{"id": "x"}', "holds no OSV records"),
        ("[]", "holds no OSV record of a package of PyPI"),
    ],
)
def test_a_file_that_tells_nothing_is_not_green(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "osv.json").write_text(text)
    result = check(tmp_path, "--advisories", str(tmp_path / "osv.json"), some_package="1.0")
    assert result.exit_code == 2
    assert sentence in result.stderr


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"components": []}'])
def test_what_is_no_bill_of_materials_is_refused(text: str) -> None:
    with pytest.raises(KvshareError, match="bill of materials"):
        bill_of("x", text)


@contextmanager
def index(answers: dict[str, Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path)
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple/"
    finally:
        server.shutdown()
        server.server_close()


def test_an_index_that_serves_advisories_is_asked_of_each_version(tmp_path: Path) -> None:
    told = {"id": "PYSEC-2026-1", "summary": "bad", "aliases": [], "fixed_in": ["3"], "withdrawn": None}
    answers = {
        "/pypi/pip/json": {"vulnerabilities": []},
        "/pypi/some-package/2.9/json": {"vulnerabilities": [told]},
        "/pypi/other/1.0/json": {"vulnerabilities": [{**told, "withdrawn": "2026-11-01T00:00:00Z"}]},
    }
    with index(answers) as url:
        result = check(tmp_path, index=url, some_package="2.9", other="1.0", unknown="1")
    assert result.exit_code == 1
    assert "PYSEC-2026-1: bad; fixed in 3" in result.stdout
    assert "1 of 3 packages has known advisories" in result.stdout


@pytest.mark.parametrize("answers", [{}, {"/pypi/pip/json": {"info": {}}}, {"/pypi/pip/json": []}])
def test_an_index_that_serves_none_could_not_be_asked(tmp_path: Path, answers: dict[str, Any]) -> None:
    with index(answers) as url:
        result = check(tmp_path, index=url, some_package="2.9")
    assert result.exit_code == 3
    assert "serves no advisories: give a file" in result.stderr


def test_without_any_source_it_says_what_to_give(tmp_path: Path) -> None:
    result = check(tmp_path, some_package="2.9")
    assert result.exit_code == 3
    assert "no source of advisories: set PIP_INDEX_URL" in result.stderr
