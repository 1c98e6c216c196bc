"""`kvshare plan`'s arithmetic against published figures, and its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvshare import cli
from kvshare.cost import plan
from kvshare.errors import KvshareError

GIB = 1024**3


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.main, ["plan", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    ("model", "kib", "kflop_per_byte"),
    [
        ("Llama-3.1-8B", 128, 123),
        ("Llama-3.1-70B", 320, 431),
        ("Qwen2.5-7B", 56, 266),
        ("Qwen2.5-0.5B", 12, 80),
        ("Qwen2.5-1.5B", 28, 107),
        ("Qwen3-0.6B", 112, 10),
        ("Qwen3-8B", 144, 111),
        ("Qwen3-14B", 160, 181),
        ("Qwen3-32B", 256, 250),
        ("Llama-3.2-1B", 32, 76),
        ("Llama-3.2-3B", 112, 56),
    ],
)
def test_kv_bytes_and_operations_a_byte(model: str, kib: int, kflop_per_byte: int) -> None:
    found = plan.MODELS[model]
    assert found.kv_bytes_per_token == kib * 1024
    assert round(2 * found.parameters / found.kv_bytes_per_token / 1000) == kflop_per_byte


@pytest.mark.parametrize(
    ("model", "gpu", "gb_per_s"),
    [
        ("Llama-3.1-8B", "H100", 3.6),
        ("Llama-3.1-8B", "A100", 1.1),
        ("Llama-3.1-8B", "L4", 0.44),
        ("Llama-3.1-70B", "H100", 1.1),
        ("Qwen2.5-7B", "H100", 1.7),
        ("Qwen2.5-7B", "A100", 0.53),
        ("Qwen2.5-7B", "L4", 0.21),
        ("Qwen3-0.6B", "H100", 26.5),
        ("Qwen3-0.6B", "A100", 8.4),
        ("Qwen3-0.6B", "L4", 3.2),
        ("Qwen3-8B", "H100", 3.9),
        ("Qwen3-8B", "A100", 1.2),
        ("Qwen3-8B", "L4", 0.47),
    ],
)
def test_the_least_bandwidth_at_8k_tokens(model: str, gpu: str, gb_per_s: float) -> None:
    """From which a pull of that length pays, constants aside: k·F·MFU / (2P + 2·L·d·n)."""
    prefill = plan.MODELS[model].prefill(plan.GPUS[gpu], 0.5)
    a_token_s = prefill.linear_s + prefill.quadratic_s * 8192
    found = plan.MODELS[model].kv_bytes_per_token / a_token_s / 1e9
    # As it was printed, with parameters in round figures.
    assert found == pytest.approx(gb_per_s, rel=0.025, abs=0.05 if gb_per_s > 1 else 0.005)


@pytest.mark.parametrize(
    ("link", "milliseconds"),
    [("1GbE", (2294, 9177, 36709)), ("10GbE", (233, 934, 3735)), ("25GbE", (93, 370, 1481)),
     ("100GbE", (30, 119, 477)), ("100G-RDMA", (22, 89, 358)), ("200G-RDMA", (11, 45, 179)),
     ("400G-RDMA", (6, 22, 89))],
)  # fmt: skip
def test_a_links_time_for_2k_8k_and_32k_tokens(link: str, milliseconds: tuple[float, ...]) -> None:
    kv_bytes = plan.MODELS["Llama-3.1-8B"].kv_bytes_per_token
    found = [tokens * kv_bytes / plan.LINKS[link] * 1000 for tokens in (2048, 8192, 32768)]
    assert found == pytest.approx(list(milliseconds), abs=0.6)


@pytest.mark.parametrize(("model", "tokens"), [("Qwen2.5-7B", 72_000), ("Llama-3.1-8B", 197_000)])
def test_one_gigabit_pays_nowhere_useful(model: str, tokens: int) -> None:
    machine = plan.Machine(plan.GPUS["L4"], 0.5, plan.LINKS["1GbE"], 0.0)
    assert plan.tokens_to_pay(plan.MODELS[model], machine) == pytest.approx(tokens, rel=0.01)


@pytest.mark.parametrize(
    "name", ["meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b", "meta-llama/Llama-3.1-8B"]
)
def test_a_model_is_known_by_its_hub_name(name: str) -> None:
    assert plan.find_model(name) is plan.MODELS["Llama-3.1-8B"]


def test_a_config_says_the_same_as_the_table(tmp_path: Path) -> None:
    """Qwen2.5-7B's and Qwen3-0.6B's own config.json, as far as it matters."""
    config = {
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584,
        "intermediate_size": 18944, "vocab_size": 152064, "torch_dtype": "bfloat16",
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    found, known = plan.find_model(str(path)), plan.MODELS["Qwen2.5-7B"]
    assert found.kv_bytes_per_token == known.kv_bytes_per_token
    assert found.attention_width == known.attention_width
    assert found.parameters == pytest.approx(known.parameters, rel=0.01)
    config |= {"num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 1024, "head_dim": 128,
               "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True}  # fmt: skip
    found = plan.read_architecture(json.dumps(config), "auto", "x")
    assert found.kv_bytes_per_token == plan.MODELS["Qwen3-0.6B"].kv_bytes_per_token
    assert found.parameters == pytest.approx(plan.MODELS["Qwen3-0.6B"].parameters, rel=0.01)


def test_fp8_halves_the_bytes() -> None:
    halved = plan.with_kv(plan.MODELS["Llama-3.1-8B"], "fp8")
    assert halved.kv_bytes_per_token * 2 == plan.MODELS["Llama-3.1-8B"].kv_bytes_per_token
    assert "64 KiB of KV a token" in invoke("--kv-cache-dtype", "fp8").stdout


def test_a_float32_cache_is_twice_as_large() -> None:
    config = json.dumps(
        {"num_hidden_layers": 10, "num_attention_heads": 10, "num_key_value_heads": 5, "hidden_size": 640,
         "head_dim": 64, "intermediate_size": 2048, "vocab_size": 259}
    )  # fmt: skip
    assert plan.read_architecture(config, "float32", "x").kv_bytes_per_token == 25600


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--model", "Lama-3.1-8B"),
            "Lama-3.1-8B is no known model and no config.json, did you mean Llama-3.1-8B?",
        ),
        (("--gpu", "H1OO"), "--gpu H1OO is not known, did you mean H100?"),
        (("--link", "10gb"), "--link 10gb is not known, did you mean 10GbE?"),
        (("--link", "-1"), "--link -1 must be above zero"),
        (("--mfu", "2"), "2.0 is not in the range"),
    ],
)
def test_bad_input_is_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())


def test_a_plan_needs_no_server_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("--model", "Qwen2.5-7B", "--gpu", "L4", "--link", "1GbE")
    assert result.exit_code == 0
    assert "Qwen2.5-7B on L4 over 1GbE: worth it from 72,704 tokens" in result.stdout
    for name in (*plan.MODELS, *plan.LINKS):
        assert f"\n{name} " in result.stdout


def test_numbers_will_do_for_a_gpu_and_a_link() -> None:
    named = invoke("--gpu", "L4", "--link", "10GbE").stdout
    numbers = invoke("--gpu", "121", "--link", "1.15").stdout
    assert named.split("\n", 1)[1] == numbers.split("\n", 1)[1]


def test_qwen_0_6b_never_pays_on_one_gigabit() -> None:
    with pytest.raises(KvshareError):
        plan.find_model("/nowhere/config.json")
    machine = plan.Machine(plan.GPUS["H100"], 0.5, plan.LINKS["1GbE"], 0.025)
    tokens = plan.tokens_to_pay(plan.MODELS["Qwen3-0.6B"], machine)
    assert tokens is not None
    assert tokens > 1_000_000
