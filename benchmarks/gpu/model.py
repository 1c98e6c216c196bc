"""A Llama of Llama-3.1-8B's or 70B's dimensions with seeded weights, made on the spot: nothing is downloaded.

Its first two layers copy from the prompt (copying.py), so that an answer hangs on every chunk of it. All else
is random and as wide as a trained model's, or a little wider, but for what it adds to the residual stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from benchmarks.gpu import copying
from benchmarks.gpu.sizes import SIZES
from kvshare_engine import demo_model

GAIN = 1.3  # a matrix lengthens a random vector by this; 0.02, the usual width, is 1.28 at 4096
HEAD_GAIN = 0.5
POSITIONS = 32768


def make(path: Path, size: str, device: str, dtype: torch.dtype) -> None:
    """Write the model to ``path`` unless it is there."""
    if (path / "config.json").exists():
        return
    path.mkdir(parents=True, exist_ok=True)
    shape = SIZES[size]
    demo_model._tokenizer().save_pretrained(path)
    _name_every_token(path / "tokenizer.json", shape["vocab_size"])
    generator = torch.Generator(device).manual_seed(demo_model.SEED)
    index = {}
    for number, shard in enumerate(_shards(shape)):
        name = f"model-{number:05d}.safetensors"
        tensors = {key: _random(key, size, generator, device) for key, size in shard.items()}
        copying.write(tensors, copying.Shape.of(shape), generator)
        save_file(
            {key: tensor.to(dtype).cpu() for key, tensor in tensors.items()}, path / name, {"format": "pt"}
        )
        index.update(dict.fromkeys(shard, name))
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    _config(shape, dtype).save_pretrained(path)


def _name_every_token(tokenizer: Path, vocab_size: int) -> None:
    """Add the ids that the byte-level tokenizer lacks: vLLM spells out the most likely tokens."""
    content = json.loads(tokenizer.read_text())
    vocab = content["model"]["vocab"]
    vocab.update({f"<{token}>": token for token in range(len(vocab), vocab_size)})
    tokenizer.write_text(json.dumps(content))


def _shards(shape: dict[str, int]) -> Iterator[dict[str, tuple[int, ...]]]:
    """The names and shapes of the weights, a layer at a time."""
    hidden, inner, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    queries = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    yield {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    for number in range(shape["num_hidden_layers"]):
        yield {f"model.layers.{number}.{name}.weight": size for name, size in layer.items()}


def _random(name: str, size: tuple[int, ...], generator: torch.Generator, device: str) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, device=device)
    adds = name.endswith(("o_proj.weight", "down_proj.weight"))
    gain = HEAD_GAIN if name.startswith("lm_head") else copying.WRITES if adds else GAIN
    return torch.randn(size, generator=generator, device=device).mul_(gain / size[1] ** 0.5)


def _config(shape: dict[str, int], dtype: torch.dtype) -> LlamaConfig:
    return LlamaConfig(
        **shape,
        architectures=["LlamaForCausalLM"],
        max_position_embeddings=POSITIONS,
        rope_theta=copying.THETA,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        dtype=str(dtype).removeprefix("torch."),
    )
