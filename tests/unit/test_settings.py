"""`.env`: what is read, what wins, and what is refused with the nearest right name."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvshare.errors import KvshareError
from kvshare.settings import find_root, load_settings, validate_node

EXAMPLE = """\
# cpu or cuda
DEVICE=cpu
COMPOSE_FILE=compose.yaml:compose.cpu.yaml

# A comment with an = sign: MODELL=none
PREFILL_CONTEXT=default
DECODE_CONTEXT=default
MODEL=
# UCX_TLS=tcp
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".env.example").write_text(EXAMPLE)
    return tmp_path


def env(folder: Path, text: str) -> None:
    (folder / ".env").write_text(text)


def test_defaults_come_from_the_example(folder: Path) -> None:
    settings = load_settings(folder, {})
    assert settings.device == "cpu"
    assert settings.compose_files == ("compose.yaml", "compose.cpu.yaml")
    assert settings.context("decode") == "default"
    assert settings.get("MODEL", "demo") == "demo"


def test_env_wins_over_the_example_and_the_environment_over_both(folder: Path) -> None:
    env(folder, "MODEL=/models/a\nDECODE_CONTEXT=gpu-b\n")
    settings = load_settings(folder, {"MODEL": "/models/b", "HOME": "/root"})
    assert settings.get("MODEL") == "/models/b"
    assert settings.context("decode") == "gpu-b"
    assert "HOME" not in settings.values


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("MODEL=x", "x"),
        ("export MODEL=x", "x"),
        ("  MODEL=x  ", "x"),
        ("MODEL='x # y'", "x # y"),
        ('MODEL="x y" # why', "x y"),
        ("MODEL=x # why", "x"),
        ("MODEL=x#y", "x#y"),
        ("MODEL=# nothing", ""),
        ("MODEL=a=b", "a=b"),
    ],
)
def test_values_are_read_as_compose_reads_them(folder: Path, line: str, value: str) -> None:
    env(folder, line + "\n")
    assert load_settings(folder, {}).values["MODEL"] == value


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("MODLE", "MODEL"), ("model", "MODEL"), ("DECODE_CONTXT", "DECODE_CONTEXT"), ("UCX_TSL", "UCX_TLS")],
)
def test_unknown_variable_is_named_with_the_nearest(folder: Path, wrong: str, near: str) -> None:
    env(folder, f"{wrong}=x\n")
    with pytest.raises(KvshareError, match=rf"\.env sets {wrong}, .*did you mean {near}\?"):
        load_settings(folder, {})


def test_variable_far_from_all_names_them_all(folder: Path) -> None:
    env(folder, "ZZZ=1\n")
    with pytest.raises(KvshareError, match="known are COMPOSE_FILE, DECODE_CONTEXT, DEVICE, MODEL"):
        load_settings(folder, {})


def test_suggested_and_composes_own_variables_are_known(folder: Path) -> None:
    env(folder, "UCX_TLS=rc\nCOMPOSE_PROJECT_NAME=other\n")
    assert load_settings(folder, {}).get("UCX_TLS") == "rc"


def test_line_that_is_no_assignment_is_named(folder: Path) -> None:
    env(folder, "MODEL=x\nMODEL y\n")
    with pytest.raises(KvshareError, match=r"\.env line 2 is no NAME=value: MODEL y"):
        load_settings(folder, {})


@pytest.mark.parametrize(("wrong", "near"), [("cuad", "cuda"), ("CPU", "cpu"), ("cpus", "cpu")])
def test_unknown_device_names_the_nearest(folder: Path, wrong: str, near: str) -> None:
    with pytest.raises(KvshareError, match=f"DEVICE={wrong} is no device, did you mean {near}"):
        load_settings(folder, {"DEVICE": wrong})


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("DEVICE=cuda\nCOMPOSE_FILE=compose.yaml:compose.cpu.yaml\n", "COMPOSE_FILE=compose.yaml in"),
        ("DEVICE=cpu\nCOMPOSE_FILE=compose.yaml\n", "COMPOSE_FILE=compose.yaml:compose.cpu.yaml in"),
    ],
)
def test_device_and_compose_file_must_agree(folder: Path, text: str, right: str) -> None:
    env(folder, text)
    with pytest.raises(KvshareError, match=f"disagree: set {right}"):
        load_settings(folder, {})


def test_an_overlay_of_the_users_own_is_welcome(folder: Path) -> None:
    env(folder, "DEVICE=cpu\nCOMPOSE_FILE=compose.yaml:compose.cpu.yaml:mine.yaml\n")
    assert load_settings(folder, {}).compose_files[-1] == "mine.yaml"


def test_device_given_for_one_command_brings_its_files(folder: Path) -> None:
    assert load_settings(folder, {"DEVICE": "cuda"}).compose_files == ("compose.yaml",)


def test_compose_sees_what_the_tool_sees(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin")
    env(folder, "MODEL=/models/a\n")
    environment = load_settings(folder, {}).compose_environment()
    assert environment["MODEL"] == "/models/a"
    assert environment["PATH"] == "/bin"


@pytest.mark.parametrize(
    ("wrong", "near"), [("prefil", "prefill"), ("decoder", "decode"), ("Decode", "decode")]
)
def test_unknown_node_names_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(KvshareError, match=f"NODE={wrong} is no node, did you mean {near}"):
        validate_node(wrong)


@pytest.mark.parametrize("node", ["prefill", "decode"])
def test_known_node(node: str) -> None:
    assert validate_node(node) == node


def test_folder_that_is_no_kvshare_folder(tmp_path: Path) -> None:
    with pytest.raises(KvshareError, match=r"has no \.env\.example"):
        load_settings(tmp_path, {})


def test_root_is_the_nearest_parent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVSHARE_ROOT", raising=False)
    below = folder / "docs" / "deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_root() == folder
    monkeypatch.setenv("KVSHARE_ROOT", "/elsewhere")
    assert find_root() == Path("/elsewhere")


def test_the_repositorys_own_example_is_valid(root: Path) -> None:
    assert load_settings(root, {}).device == "cpu"
