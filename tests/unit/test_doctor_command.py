"""`kvshare doctor`: exit codes, streams, and what --write does to `.env`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvshare import cli
from kvshare.commands import doctor as command
from kvshare.config import dotenv
from kvshare.config.settings import Settings
from kvshare.doctor import gather
from kvshare.doctor.evidence import Evidence, Link
from kvshare.doctor.meaning import derived_line
from kvshare.errors import CouldNotCheckError
from tests.unit.doctor_build import healthy
from tests.unit.doctor_faults import FAULTS

GOLDEN = Path(__file__).parent / "golden"
SLOW = FAULTS["timeout-too-small"].evidence
LINE = (
    "LOOKUP_TIMEOUT_MS=105500  # make doctor ARGS=--write, 2026-11-24: prefill to decode 0.12 GB/s, 200 µs; "
    "32768 tokens take 52.61 s"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "load_settings", lambda _: Settings(tmp_path, {"DEVICE": "cpu"}))
    return tmp_path


def invoke(monkeypatch: pytest.MonkeyPatch, evidence: Evidence, *arguments: str) -> Result:
    def examine(_: Settings, options: gather.Options, narrate: Any) -> Evidence:
        narrate("looking")
        invoke.options = options  # type: ignore[attr-defined]
        return evidence

    monkeypatch.setattr(gather, "examine", examine)
    result = CliRunner().invoke(cli.main, ["doctor", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("form", ["table", "short"])
def test_report_goes_to_stdout(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, healthy(), "--output", form)
    assert result.stdout == (GOLDEN / f"doctor-healthy.{form}.txt").read_text()
    assert result.exit_code == 0


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", ["engine-unreachable", "hash-seed", "no-buildx"])
def test_exit_code_is_the_diagnosis(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke(monkeypatch, FAULTS[name].evidence).exit_code == FAULTS[name].exit_code


def test_report_is_also_written_to_a_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, healthy(), "-o", "json", "--output-file", str(root / "report.json"))
    assert (root / "report.json").read_text() == result.stdout
    assert json.loads(result.stdout)["ready"] is True


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(("arguments", "network"), [((), True), (("--only", "engines"), False)])
def test_nothing_is_dialled_that_nobody_asks_for(
    arguments: tuple[str, ...], network: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke(monkeypatch, healthy(), *arguments)
    assert invoke.options.network is network  # type: ignore[attr-defined]


@pytest.mark.usefixtures("root")
def test_a_wrong_selection_is_refused_before_anything_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, healthy(), "--only", "DOC-NET-1")
    assert result.exit_code == 2
    assert "did you mean DOC-NET-01" in result.stderr


# --- --write ------------------------------------------------------------------------------------------------


def test_write_puts_the_derived_timeout_into_env(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / ".env").write_text("DEVICE=cuda\nLOOKUP_TIMEOUT_MS=3000 # mine\nMODEL=/models/x")
    result = invoke(monkeypatch, SLOW, "--write")
    assert (root / ".env").read_text() == f"DEVICE=cuda\n{LINE}\nMODEL=/models/x"
    assert "LOOKUP_TIMEOUT_MS=105500" in result.stderr
    assert result.exit_code == 1, "what was found is the exit code all the same"


@pytest.mark.parametrize("before", [None, "", "DEVICE=cuda", "DEVICE=cuda\n", "# LOOKUP_TIMEOUT_MS=1\n"])
def test_a_line_that_is_not_there_is_added(before: str | None, tmp_path: Path) -> None:
    if before is not None:
        (tmp_path / ".env").write_text(before)
    dotenv.write(tmp_path, LINE)
    kept = f"{before.rstrip()}\n" if before else ""
    assert (tmp_path / ".env").read_text() == f"{kept}{LINE}\n"
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


def test_written_twice_it_stands_once_and_the_files_mode_stays(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\n")
    (tmp_path / ".env").chmod(0o600)
    for _ in range(2):
        dotenv.write(tmp_path, LINE)
    assert (tmp_path / ".env").read_text().count("LOOKUP_TIMEOUT_MS") == 1
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_the_settings_read_what_was_written(tmp_path: Path) -> None:
    from kvshare.config.settings import load_settings

    (tmp_path / ".env.example").write_text(
        "DEVICE=cpu\nCOMPOSE_FILE=compose.yaml:compose.cpu.yaml\nLOOKUP_TIMEOUT_MS=3000\n"
    )
    dotenv.write(tmp_path, LINE)
    assert load_settings(tmp_path, {}).get("LOOKUP_TIMEOUT_MS") == "105500"


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (Link("prefill", "decode", error="no usable transports"), "no usable transports"),
        (Link("prefill", "decode", not_tried="decode could not be looked at"), "could not be looked at"),
    ],
)
def test_without_a_measured_link_env_stays_as_it_is(link: Link, reason: str) -> None:
    with pytest.raises(CouldNotCheckError, match=f"{reason}; .env is as it was"):
        derived_line(replace(SLOW, links=(link,)))
