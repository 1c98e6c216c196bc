"""The command line: exit codes, streams, one sentence for every mistake, never a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvshare import cli, records
from kvshare.servers import sharing
from kvshare.verify import checks, legs
from kvshare.verify import run as verify
from kvshare.verify.evidence import Traffic
from kvshare.verify.judgement import judge
from tests.unit.build import proven
from tests.unit.fake_stack import FakeStack, serve
from tests.unit.faults import FAULTS

GOLDEN = Path(__file__).parent / "golden"


def invoke(*arguments: str, **more: Any) -> Result:
    result = CliRunner().invoke(cli.main, list(arguments), **more)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "evidence.json"
    path.write_text(records.dumps(proven()))
    return path


@pytest.mark.parametrize("form", ["table", "short"])
def test_report_goes_to_stdout(form: str, saved: Path) -> None:
    result = invoke("verify", "--from-evidence", str(saved), "--output", form)
    assert result.stdout == (GOLDEN / f"verify-proven.{form}.txt").read_text()
    assert result.stderr == ""
    assert result.exit_code == 0


@pytest.mark.parametrize("name", FAULTS)
def test_exit_code_is_the_judgements(name: str, saved: Path) -> None:
    saved.write_text(records.dumps(FAULTS[name].evidence))
    result = invoke("verify", "--from-evidence", str(saved), "--output", "short")
    assert result.exit_code == FAULTS[name].exit_code
    assert result.stdout == (GOLDEN / f"verify-{name}.short.txt").read_text()


def test_report_is_also_written_to_a_file(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    result = invoke("verify", "--from-evidence", str(saved), "-o", "json", "--output-file", str(target))
    assert target.read_text() == result.stdout
    assert json.loads(result.stdout)["proven"] is True


def test_evidence_can_be_saved_and_judged_again(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "again.json"
    invoke("verify", "--from-evidence", str(saved), "--save-evidence", str(target))
    assert invoke("verify", "--from-evidence", str(target)).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "KV-PEER-1"], "KV-PEER-1 is neither a check nor a category, did you mean KV-PEER-01?"),
        (["--skip", "answer"], "answer is neither a check nor a category, did you mean answers?"),
        (["--output", "yaml"], "'yaml' is not one of 'table', 'short', 'json'"),
        (["--prompts", "0"], "0 is not in the range x>=1"),
        (["--wait", "-1"], "-1.0 is not in the range x>=0"),
        (["--from-evidence", "/nowhere"], "File '/nowhere' does not exist"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_sentence(arguments: list[str], sentence: str) -> None:
    result = invoke("verify", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stdout == ""


def test_evidence_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    path.write_text("{}")
    result = invoke("verify", "--from-evidence", str(path))
    assert result.exit_code == 2
    assert "is no evidence that this version saved" in result.stderr


@pytest.mark.parametrize("command", ["legs", "bench-client"])
def test_a_task_of_another_version_is_refused_by_the_field_that_it_lacks(command: str) -> None:
    result = invoke(command, "--spec", "{}")
    assert result.exit_code == 2
    assert "missing required field `prefill`; type make image." in result.stderr


def test_ctrl_c_is_130_and_a_sentence(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvshare.commands.verify._read_evidence", interrupted)
    result = invoke("verify", "--from-evidence", str(saved))
    assert result.exit_code == 130
    assert result.stderr == "Error: interrupted by Ctrl-C, nothing was concluded.\n"


def test_folder_that_is_no_kvshare_folder(tmp_path: Path) -> None:
    result = invoke("verify", env={"KVSHARE_ROOT": str(tmp_path)})
    assert result.exit_code == 2
    assert "is no kvshare folder" in result.stderr


def test_misspelt_variable_ends_before_docker_is_asked(tmp_path: Path) -> None:
    (tmp_path / ".env.example").write_text("DEVICE=cpu\nCOMPOSE_FILE=compose.yaml:compose.cpu.yaml\nMODEL=\n")
    (tmp_path / ".env").write_text("MODLE=x\n")
    result = invoke("verify", env={"KVSHARE_ROOT": str(tmp_path)})
    assert result.exit_code == 2
    assert "did you mean MODEL?" in result.stderr


# --- legs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUSH_S", "ADMISSION_DEADLINE_S"):
        monkeypatch.setattr(legs, name, 0.05)
    monkeypatch.setattr(sharing, "FLUSH_S", 0.05)


@pytest.mark.usefixtures("impatient")
def test_legs_print_evidence_on_stdout_and_progress_on_stderr() -> None:
    with serve(FakeStack()) as spec:
        result = invoke("legs", "--spec", records.dumps(spec))
    assert len(records.loads(Traffic, result.stdout).legs) == 11
    assert "control on decode: 522 tokens" in result.stderr


@pytest.mark.usefixtures("impatient")
def test_legs_take_addresses_for_debugging_and_draw_a_seed() -> None:
    with serve(FakeStack()) as spec:
        urls = ["--prefill", spec.prefill, "--decode", spec.decode, "--controller", spec.controller]
        result = invoke("legs", *urls, "--prompts", "1", "--prompt-tokens", "522")
    assert result.exit_code == 0
    assert records.loads(Traffic, result.stdout).spec.prompts == 1


@pytest.mark.usefixtures("impatient")
def test_api_key_comes_from_a_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    with serve(FakeStack(api_key="s3cret")) as spec:
        result = invoke("legs", "--spec", records.dumps(spec), env={"VLLM_API_KEY_FILE": str(key)})
    assert records.loads(Traffic, result.stdout).prefill.healthy
    assert "s3cret" not in result.output


def test_api_key_file_that_is_not_there() -> None:
    result = invoke(
        "legs", "--prefill", "x", "--decode", "x", "--controller", "x", "--api-key-file", "/nowhere"
    )
    assert result.exit_code == 2
    assert "the API key file /nowhere cannot be read: No such file or directory." in result.stderr


def test_legs_without_addresses() -> None:
    result = invoke("legs", "--prefill", "http://x")
    assert result.exit_code == 2
    assert "give --spec, or --prefill, --decode and --controller" in result.stderr


def test_client_image_needs_no_docker_sdk() -> None:
    program = (
        "import sys\nfor name in ('docker', 'dotenv', 'jinja2', 'psutil', 'pygal', 'yaml'):\n"
        "    sys.modules[name] = None\n"
    )
    program += "from kvshare.cli import main; main(['legs', '--help'])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_version() -> None:
    assert invoke("--version").stdout == "kvshare, version 0.1.0\n"


def test_what_a_verification_saw_is_kept_for_the_bundle(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(root / ".env.example", tmp_path)
    judged = judge(proven(), checks.select((), ()))
    monkeypatch.setattr(verify, "verify", lambda *_: (judged,))
    assert invoke("verify", env={"KVSHARE_ROOT": str(tmp_path)}).exit_code == 0
    kept = tmp_path / ".kvshare/verify-decode.json"
    assert invoke("verify", "--from-evidence", str(kept)).exit_code == 0
