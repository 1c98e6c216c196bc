"""Make a model in /models whose heads two ranks can share; run inside the engine image."""

from __future__ import annotations

from pathlib import Path

from kvshare_engine import demo_model

demo_model.ARCHITECTURE |= {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
demo_model.ensure(Path("/models/kvshare-two-ranks"))
