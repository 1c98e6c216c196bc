"""Make a tiny model of a family, with seeded random weights and the demo model's tokenizer.

Run inside the CPU engine's image: python families.py FAMILY FOLDER [--weights]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "initializer_range": 0.08,  # as the demo model's: narrower weights all but ignore their attention
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
WINDOW = {"sliding_window": 512}
OF_WINDOWS = {"sliding_window": 1024}  # shorter than a prompt, and long enough for its beginning to be felt
LAST_FULL = [*["sliding_attention"] * 3, "full_attention"]  # with a window on every layer nothing is shared
# By name: the configuration's class in transformers, and what differs from SHAPE.
SHARING: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "Llama, multi-head": ("LlamaConfig", {"num_key_value_heads": 8}),
    "Llama, multi-query": ("LlamaConfig", {"num_key_value_heads": 1}),
    "Mistral": ("MistralConfig", {"sliding_window": None}),
    "Mixtral": ("MixtralConfig", {**EXPERTS, "sliding_window": None}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen3": ("Qwen3Config", {}),
    "Qwen3-MoE": ("Qwen3MoeConfig", EXPERTS),
    "Gemma 2": ("Gemma2Config", {**WINDOW, "query_pre_attn_scalar": 32}),
    "Gemma 3": ("Gemma3TextConfig", {**WINDOW, "query_pre_attn_scalar": 32, "layer_types": LAST_FULL}),
    "gpt-oss": ("GptOssConfig", {**EXPERTS, **WINDOW, "head_dim": 64}),
    "Phi-3": ("Phi3Config", {"pad_token_id": 2}),
    "OLMo 2": ("Olmo2Config", {}),
    "Granite": ("GraniteConfig", {}),
    "OPT": (
        "OPTConfig",
        {"num_key_value_heads": 8, "ffn_dim": 512, "word_embed_proj_dim": 256, "init_std": 0.08},
    ),
}
# On a GPU, in bfloat16: dimensions that its kernels know, and weights so wide that each chunk counts.
ON_GPU: dict[str, tuple[str, dict[str, Any]]] = {
    "DeepSeek-V2 (MLA)": (
        "DeepseekV2Config",
        {
            **{"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64},
            **{"kv_lora_rank": 512, "q_lora_rank": None, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128},
            **{"v_head_dim": 128, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 128, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
            "initializer_range": 0.3,
        },
    ),
    "gpt-oss": ("GptOssConfig", {**EXPERTS, **WINDOW, "head_dim": 64, "initializer_range": 0.3}),
    "Gemma 3": (
        "Gemma3TextConfig",
        {
            **{**WINDOW, "head_dim": 256, "query_pre_attn_scalar": 4, "initializer_range": 0.3},
            **{"num_hidden_layers": 2, "layer_types": LAST_FULL[-2:], "tie_word_embeddings": False},
        },
    ),
}
# Of these the configuration is enough: they are refused before weights are loaded.
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-Next": ("Qwen3NextConfig", {}),
    "Mamba": ("MambaConfig", {}),
    "Falcon-H1": ("FalconH1Config", {}),
    "LFM2": ("Lfm2Config", {"layer_types": ["conv", "conv", "full_attention", "conv"]}),
    "DeepSeek-V2": ("DeepseekV2Config", {}),
    "T5": ("T5Config", {}),
    "Whisper": ("WhisperConfig", {}),
    "Mistral with a window on every layer": ("MistralConfig", OF_WINDOWS),
    "Phi-3 with a window on every layer": ("Phi3Config", {**OF_WINDOWS, "pad_token_id": 2}),
    "Starcoder2 with a window on every layer": ("Starcoder2Config", OF_WINDOWS),
}
# What is tried with SHARING=multiprocess: layers of several kinds, and what the other way refuses.
BESIDE = ("Llama", "Gemma 2", "Gemma 3", "gpt-oss", *(name for name in REFUSED if "a window" in name))


def make(family: str, folder: Path, on_gpu: bool = False, weights: bool = False) -> None:
    """Put the family's model at ``folder``; of one that is refused its config.json, unless ``weights``."""
    import torch
    import transformers

    from kvshare_engine import demo_model

    name, differs = (ON_GPU if on_gpu else SHARING | REFUSED)[family]
    tokenizer = demo_model._tokenizer()
    tokens = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    dtype = torch.bfloat16 if on_gpu else torch.float32
    config = getattr(transformers, name)(
        **{**SHAPE, **tokens, "vocab_size": len(tokenizer), "dtype": dtype, **differs}
    )
    if not on_gpu and not weights and family in REFUSED:
        config.save_pretrained(folder)
        return
    torch.manual_seed(demo_model.SEED)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]), weights="--weights" in sys.argv[3:])
