"""What cannot work is known before it is tried: by a model's config.json, by a folder's mode."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from kvshare.refusals import may_write, unshareable

DENSE = {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 64}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        # Qwen3-Next on the hub names no layers; OLMo-Hybrid and Granite 4 do.
        (
            {"linear_num_value_heads": 32, "full_attention_interval": 4},
            r"running state \(linear_num_value_heads\)",
        ),
        ({"layer_types": ["linear_attention", "full_attention"]}, r"running state \(linear_attention\)"),
        ({"layer_types": ["mamba", "attention"], "mamba_d_state": 16}, r"running state \(mamba\)"),
        ({"mamba_d_ssm": 1024, "mamba_n_heads": 24}, "running state"),  # Falcon-H1
        ({"hybrid_override_pattern": "M-M*", "ssm_state_size": 128}, "running state"),  # Nemotron-H
        ({"state_size": 16, "conv_kernel": 4}, r"running state \(state_size\)"),  # Mamba
        ({"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}, r"running state \(conv\)"),  # LFM2
        ({"text_config": {"layer_types": ["linear_attention"]}}, "running state"),  # Qwen3.5
        ({"is_encoder_decoder": True}, "it is an encoder-decoder"),
        (
            {"layer_types": ["sliding_attention"] * 2, "sliding_window": 256},
            r"every layer has a window \(256 tokens\)",
        ),
        (
            {"model_type": "mistral", "sliding_window": 4096},
            "every layer has a window",
        ),  # Mistral 7B v0.1
        ({"kv_lora_rank": 512}, "it keeps KV compressed"),
        ({"head_dim": 256, "global_head_dim": 512}, r"differs in shape \(global_head_dim\)"),  # Gemma 4
        ({"swa_num_key_value_heads": 8, "num_key_value_heads": 4}, "differs in shape"),  # MiMo-V2
        ({"num_key_value_heads": [3, 3, 4]}, r"differs in shape \(num_key_value_heads\)"),  # OpenELM
        ({"block_configs": [{"attention": {"n_heads_in_group": 8}}]}, "differs in shape"),  # Nemotron-NAS
    ],
)
def test_a_model_that_shares_no_kv_is_known_by_its_config(config: dict[str, Any], why: str) -> None:
    assert re.search(why, unshareable({**DENSE, **config}, "cpu"))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128},  # Gemma 3, gpt-oss
        {"layer_types": ["full_attention"] * 2, "sliding_window": 4096},
        {"model_type": "mistral", "sliding_window": None},  # Mistral 7B v0.3
        {"model_type": "gemma2", "sliding_window": 4096},  # every other layer
        {"model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False},
        {"layer_types": ["chunked_attention", "full_attention"]},  # Llama 4
        {"layer_types": ["attention", "attention"], "mamba_d_state": 256},  # granite-4.0-micro
        {"is_encoder_decoder": False, "kv_lora_rank": None, "block_configs": None},
        {"num_key_value_heads": [4, 4], "swa_head_dim": 64},
    ],
)
def test_any_other_is_served(config: dict[str, Any]) -> None:
    assert unshareable({**DENSE, **config}, "cpu") == ""


def test_windows_that_an_option_of_vllm_takes_away_are_served() -> None:
    config = {**DENSE, "model_type": "mistral", "sliding_window": 4096}
    assert unshareable(config, "cpu", "--max-num-seqs 8 --disable-sliding-window") == ""
    assert "--disable-sliding-window in VLLM_ARGS" in unshareable(config, "cpu", "--max-num-seqs 8")
    assert unshareable(config, "cpu", "--max-num-seqs 8", multiprocess=True) == ""


def test_compressed_kv_is_moved_with_a_gpu() -> None:
    assert unshareable({"kv_lora_rank": 512}, "cuda") == ""


@pytest.mark.parametrize(
    ("mode", "user", "groups", "may"),
    [
        (0o755, os.geteuid() + 1, (), False),
        (0o777, os.geteuid() + 1, (), True),
        (0o775, os.geteuid() + 1, (os.getegid(),), True),
        (0o757, os.geteuid() + 1, (os.getegid(),), False),
        (0o702, os.geteuid() + 1, (), False),
        (0o500, 0, (), True),
    ],
)
def test_who_may_write_a_folder_follows_from_its_mode(
    mode: int, user: int, groups: tuple[int, ...], may: bool, tmp_path: Path
) -> None:
    tmp_path.chmod(mode)
    assert may_write(tmp_path, user, groups) is may
    assert may_write(tmp_path / "not/there", user, groups) is may
