"""`.env`: what is read, what wins, and what is refused with the nearest right name."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvshare.config.settings import find_root, load_settings, validate_node
from kvshare.errors import KvshareError

EXAMPLE = """\
# cpu or cuda
DEVICE=cpu
COMPOSE_FILE=compose.yaml:compose.cpu.yaml

# A comment with an = sign: MODELL=none
PREFILL_CONTEXT=default
DECODE_CONTEXT=default
MODEL=
MAX_MODEL_LEN=1600
VLLM_ARGS=
TRANSPORT=tcp
DECODE_HOST=127.0.0.1
DECODE_GPU=0
DECODE_HOSTS=
DECODE_CONTEXTS=
DECODE_GPUS=
HF_TOKEN_FILE=
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
    assert [node.context for node in settings.decode_nodes] == ["default"]
    assert settings.get("MODEL", "demo") == "demo"


def test_env_wins_over_the_example_and_the_environment_over_both(folder: Path) -> None:
    env(folder, "MODEL=/models/a\nDECODE_CONTEXT=gpu-b\n")  # pragma: allowlist secret
    settings = load_settings(folder, {"MODEL": "/models/b", "HOME": "/root"})
    assert settings.get("MODEL") == "/models/b"
    assert [node.context for node in settings.decode_nodes] == ["gpu-b"]
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
        ("MODEL=  # nothing", ""),
        ('MODEL="x\\ty"', "x\ty"),
        ("MODEL=a=b", "a=b"),
    ],
)
def test_values_end_where_a_comment_begins(folder: Path, line: str, value: str) -> None:
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
    with pytest.raises(KvshareError, match="known are COMPOSE_FILE, DECODE_CONTEXT, DECODE_CONTEXTS"):
        load_settings(folder, {})


def test_suggested_and_composes_own_variables_are_known(folder: Path) -> None:
    env(folder, "UCX_TLS=rc\nCOMPOSE_PROJECT_NAME=other\n")
    assert load_settings(folder, {}).get("UCX_TLS") == "rc"


@pytest.mark.parametrize("line", ["MODEL y", "MODEL", "MODEL='x", 'MODEL="x" y', "=x"])
def test_line_that_is_no_assignment_is_named(folder: Path, line: str) -> None:
    env(folder, f"MODEL=x\n{line}\n")
    with pytest.raises(KvshareError, match=rf"\.env line 2 is no NAME=value: {line}"):
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
def test_unknown_node_names_the_nearest(folder: Path, wrong: str, near: str) -> None:
    with pytest.raises(KvshareError, match=f"NODE={wrong} is no node, did you mean {near}"):
        validate_node(wrong, load_settings(folder, {}))


@pytest.mark.parametrize("node", ["prefill", "decode", "all"])
def test_known_node(folder: Path, node: str) -> None:
    assert validate_node(node, load_settings(folder, {})) == node


SEVERAL = "DECODE_HOSTS=10.0.0.2,10.0.0.3\nDECODE_CONTEXTS=gpu-b, gpu-c\n"


def test_several_decode_nodes_have_names_and_instances_of_their_own(folder: Path) -> None:
    env(folder, SEVERAL + "DECODE_GPU=1\n")
    settings = load_settings(folder, {})
    assert [node.name for node in settings.decode_nodes] == ["decode-1", "decode-2"]
    assert validate_node("decode-2", settings) == "decode-2"
    second = settings.compose_environment("gpu-c")
    assert (second["DECODE_HOST"], second["DECODE_INSTANCE"], second["DECODE_GPU"]) == ("10.0.0.3", "3", "1")
    assert settings.compose_environment("gpu-b")["DECODE_INSTANCE"] == "2"


def test_several_gpus_of_several_nodes(folder: Path) -> None:
    env(folder, SEVERAL + "DECODE_GPUS=0,1;2,3\n")
    assert [node.gpu for node in load_settings(folder, {}).decode_nodes] == ["0,1", "2,3"]
    env(folder, SEVERAL + "DECODE_GPUS=0,1\n")
    assert [node.gpu for node in load_settings(folder, {}).decode_nodes] == ["0", "1"]


@pytest.mark.parametrize("name", ["DECODE_CONTEXTS", "DECODE_GPUS"])
def test_lists_of_unequal_length_are_refused(folder: Path, name: str) -> None:
    env(folder, SEVERAL + f"{name}=one\n")
    with pytest.raises(KvshareError, match=f"DECODE_HOSTS names 2 nodes and {name} 1"):
        load_settings(folder, {}).decode_nodes  # noqa: B018


def test_rdma_brings_its_compose_file(folder: Path) -> None:
    settings = load_settings(folder, {"DEVICE": "cuda", "TRANSPORT": "rdma"})
    assert settings.compose_files == ("compose.yaml", "compose.rdma.yaml")


def test_a_transport_without_its_compose_file_is_refused(folder: Path) -> None:
    env(folder, "TRANSPORT=rdma\n")
    with pytest.raises(
        KvshareError, match=r"set COMPOSE_FILE=compose\.yaml:compose\.cpu\.yaml:compose\.rdma\.yaml"
    ):
        load_settings(folder, {})


def test_an_unknown_transport_names_the_nearest(folder: Path) -> None:
    with pytest.raises(KvshareError, match="TRANSPORT=tpc is no transport, did you mean tcp"):
        load_settings(folder, {"TRANSPORT": "tpc"})


def test_an_option_of_vllm_that_kvshare_owns_is_refused_with_where_to_set_it(folder: Path) -> None:
    env(folder, "VLLM_ARGS=--max-num-seqs 8 --max_model_len=4096\n")
    with pytest.raises(KvshareError, match=r"VLLM_ARGS has --max_model_len=4096, .* set MAX_MODEL_LEN in"):
        load_settings(folder, {})


@pytest.mark.parametrize(
    ("decision", "sentence"),
    [
        ("DECODE_HOST=::1", "DECODE_HOST has ::1, and kvshare speaks IPv4 alone"),
        ("DECODE_HOSTS=10.0.0.2,[fd00::2]", r"DECODE_HOSTS has \[fd00::2\], and kvshare speaks IPv4 alone"),
        ("DECODE_HOST=10.0.0.2:8011", "give the machine's IPv4 address, without a port"),
        ("MODEL=/models/llama@v2", "MODEL=/models/llama@v2 has an @, at which LMCache takes its keys apart"),
        (
            "MAX_MODEL_LEN=32kb",
            "MAX_MODEL_LEN=32kb is no length: set it to tokens, as 8192 or 32k, or to auto",
        ),
        ("MAX_MODEL_LEN=1.5K", "MAX_MODEL_LEN=1.5K is no length"),
        ("VLLM_ARGS=--spec-model small", "expected no draft model and found one for speculative decoding"),
    ],
)
def test_what_would_fail_late_is_refused_where_it_enters(folder: Path, decision: str, sentence: str) -> None:
    env(folder, f"{decision}\n")
    with pytest.raises(KvshareError, match=sentence):
        load_settings(folder, {})


@pytest.mark.parametrize("length", ["1600", "32k", "32K", "1.5k", "auto", "-1", ""])
def test_a_length_is_written_in_each_of_vllms_ways(folder: Path, length: str) -> None:
    env(folder, f"MAX_MODEL_LEN={length}\n")
    assert load_settings(folder, {}).get("MAX_MODEL_LEN") == length


def test_the_hub_token_is_read_from_its_file_for_compose_alone(folder: Path) -> None:
    (folder / "token").write_text("hf_secret\n")
    env(folder, "HF_TOKEN_FILE=token\n")
    settings = load_settings(folder, {})
    assert settings.compose_environment()["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in settings.values.values()


def test_a_hub_token_file_that_is_not_there_is_named(folder: Path) -> None:
    env(folder, "HF_TOKEN_FILE=absent\n")
    with pytest.raises(KvshareError, match="HF_TOKEN_FILE=absent cannot be read"):
        load_settings(folder, {}).compose_environment()


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
