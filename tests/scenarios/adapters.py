"""Make two random LoRA adapters of the demo model and a chat template; run inside the engine image."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from kvshare_engine import demo_model

RANK, WIDTH = 8, 0.1
MODEL = demo_model.ensure(Path("/models/kvshare-demo"))
CONFIG = json.loads((MODEL / "config.json").read_text())
HEAD = CONFIG.get("head_dim") or CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
HEADS = {
    "q_proj": CONFIG["num_attention_heads"],
    "k_proj": CONFIG["num_key_value_heads"],
    "v_proj": CONFIG["num_key_value_heads"],
}

for seed, name in enumerate("ab", start=1):
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(CONFIG["num_hidden_layers"]):
        for module, heads in HEADS.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            shape = (RANK, CONFIG["hidden_size"])
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(shape, generator=draw) * WIDTH
            tensors[f"{prefix}.lora_B.weight"] = torch.randn((heads * HEAD, RANK), generator=draw) * WIDTH
    folder = Path(f"/models/lora-{name}")
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": RANK,
                "lora_alpha": 2 * RANK,
                "target_modules": list(HEADS),
                "bias": "none",
                "base_model_name_or_path": str(MODEL),
            }
        )
    )

Path("/models/its chat.jinja").write_text(
    "{% for tool in tools or () %}{{ tool.function.name }}{% endfor %}{{ messages[0].content }}"
)
