"""Make a model of which every layer has a window; run inside the engine image."""

from __future__ import annotations

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from kvshare_engine import demo_model

FOLDER, WINDOW = "/models/kvshare-window", 256

tokenizer = demo_model._tokenizer()
tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
torch.manual_seed(demo_model.SEED)
config = Qwen2Config(
    vocab_size=len(tokenizer),
    dtype="float32",
    use_sliding_window=True,
    sliding_window=WINDOW,
    layer_types=["sliding_attention"] * int(demo_model.ARCHITECTURE["num_hidden_layers"]),
    **tokens,
    **demo_model.ARCHITECTURE,
)
Qwen2ForCausalLM(config).save_pretrained(FOLDER)
tokenizer.save_pretrained(FOLDER)
